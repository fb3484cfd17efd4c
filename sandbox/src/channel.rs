//! Sockets between processes: whole messages, bounded, with descriptors where they belong.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix_sandbox as rustix;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recv_uninit, recvmsg, send, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message: a request with the longest list of passwords. Contents go by shared memory.
pub(crate) const MESSAGE_BYTES_MAX: usize = 128 * 1024;
/// The longest message that comes with descriptors.
const SHORT_BYTES_MAX: usize = 1024;
/// Most descriptors of one message.
pub(crate) const DESCRIPTORS_MAX: usize = 4;

/// Two ends of a socket that keeps messages apart.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn encoded(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let bytes = postcard::to_allocvec(message).map_err(|error| invalid(&error.to_string()))?;
    if bytes.len() > MESSAGE_BYTES_MAX { Err(invalid("the message is too long")) } else { Ok(bytes) }
}

/// Sends a message.
pub(crate) fn tell(socket: impl AsFd, message: &impl Serialize) -> io::Result<()> {
    let bytes = encoded(message)?;
    retry(|| send(socket.as_fd(), &bytes, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Sends a message to whoever need not be willing to read: an error if there is no room for it.
pub(crate) fn tell_at_once(socket: impl AsFd, message: &impl Serialize) -> io::Result<()> {
    let bytes = encoded(message)?;
    retry(|| send(socket.as_fd(), &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT))?;
    Ok(())
}

/// Sends a message and descriptors.
pub(crate) fn tell_with(socket: impl AsFd, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = encoded(message)?;
    let mut space = [0; rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(invalid("too many descriptors"));
    }
    retry(|| sendmsg(socket.as_fd(), &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Room for one message, of which no more is touched than a message fills.
pub(crate) struct Room(Vec<u8>);

impl Room {
    pub fn new() -> Self {
        Self(Vec::with_capacity(MESSAGE_BYTES_MAX))
    }
}

/// Receives a message; none at the end.
pub(crate) fn hear<M: DeserializeOwned>(socket: impl AsFd, room: &mut Room) -> io::Result<Option<M>> {
    let mut was_reset = false;
    loop {
        match recv_uninit(socket.as_fd(), room.0.spare_capacity_mut(), RecvFlags::empty()) {
            Ok((message, _)) => return decoded(message),
            Err(rustix::io::Errno::INTR) => {}
            // Whoever ends without having read everything resets its socket; what it said before is behind that error.
            Err(rustix::io::Errno::CONNRESET) if !was_reset => was_reset = true,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives a message with descriptors; none at the end.
pub(crate) fn hear_with<M: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut bytes = [0; SHORT_BYTES_MAX];
    let mut space = [0; rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        retry(|| recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC))?;
    let descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(decoded(bytes.get(..received.bytes).unwrap_or_default())?.map(|message| (message, descriptors)))
}

fn decoded<M: DeserializeOwned>(bytes: &[u8]) -> io::Result<Option<M>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    postcard::from_bytes(bytes).map(Some).map_err(|error| invalid(&error.to_string()))
}

/// Waits until there is something to receive, or the end. False if the time is over before.
pub(crate) fn wait(socket: impl AsFd, most: Duration) -> io::Result<bool> {
    let socket = socket.as_fd();
    let mut descriptors = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    let began = Instant::now();
    loop {
        let left = most.saturating_sub(began.elapsed());
        match poll(&mut descriptors, i32::try_from(left.as_millis()).unwrap_or(i32::MAX)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}
