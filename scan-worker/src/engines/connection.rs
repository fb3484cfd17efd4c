//! What engines outside this process are spoken to with: a socket on which every step has a deadline, and a bounded pool of
//! what is kept open between files.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix_sandbox::io::Errno;
use rustix_sandbox::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect_unix, recv, socket_with,
};

/// How much is read at once of an answer. Answers are a line.
const READ_BYTES: usize = 4096;

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A connection of which every read and write ends by a deadline.
pub(super) struct Connection {
    stream: Stream,
    /// What came and was not asked for yet.
    buffer: Vec<u8>,
}

impl From<UnixStream> for Connection {
    fn from(stream: UnixStream) -> Self {
        Self { stream: Stream::Unix(stream), buffer: Vec::new() }
    }
}

impl Connection {
    /// Connects to a Unix socket. A server that accepts nothing is an error at once.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect_unix(&socket, &SocketAddrUnix::new(path)?)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(stream.into())
    }

    /// Connects over TCP.
    pub fn tcp(address: &SocketAddr, deadline: Instant) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(address, remaining(deadline)?)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: Stream::Tcp(stream), buffer: Vec::new() })
    }

    /// Writes all of it.
    pub fn write(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let left = Some(remaining(deadline)?);
            let written = match &mut self.stream {
                Stream::Unix(stream) => stream.set_write_timeout(left).and_then(|()| stream.write(bytes)),
                Stream::Tcp(stream) => stream.set_write_timeout(left).and_then(|()| stream.write(bytes)),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(plain(error)),
            }
        }
        Ok(())
    }

    /// What comes up to the next `end`, without it; at most `most` bytes.
    pub fn read_until(&mut self, end: u8, most: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            let fresh = self.buffer.get(searched..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|byte| *byte == end) {
                let mut line: Vec<u8> = self.buffer.drain(..=searched + at).collect();
                line.pop();
                return Ok(line);
            }
            searched = self.buffer.len();
            if searched > most {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an answer of more than {most} bytes")));
            }
            let left = Some(remaining(deadline)?);
            let mut piece = [0; READ_BYTES];
            let read = match &mut self.stream {
                Stream::Unix(stream) => stream.set_read_timeout(left).and_then(|()| stream.read(&mut piece)),
                Stream::Tcp(stream) => stream.set_read_timeout(left).and_then(|()| stream.read(&mut piece)),
            };
            match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.buffer.extend_from_slice(piece.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(plain(error)),
            }
        }
    }

    /// Whether something came that nobody asked for.
    pub fn has_unread(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether nothing is to be read and the other side is still there: so it is between two files.
    pub fn is_at_rest(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let mut byte = [0; 1];
        let peeked = match &self.stream {
            Stream::Unix(stream) => recv(stream, &mut byte, flags),
            Stream::Tcp(stream) => recv(stream, &mut byte, flags),
        };
        !self.has_unread() && peeked == Err(Errno::AGAIN)
    }

    /// The socket, to send descriptors over.
    pub fn unix_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.stream {
            Stream::Unix(stream) => Some(stream.as_fd()),
            Stream::Tcp(_) => None,
        }
    }
}

/// How long until the deadline; an error once it has passed.
fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
    left.ok_or_else(|| io::ErrorKind::TimedOut.into())
}

/// A timeout of a socket under the name that it has everywhere else.
fn plain(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

/// Whether an error is that the other side is gone, which a kept connection may be for good reasons.
pub(super) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Connections that are kept between files, and the bound on how many there are.
pub(super) struct Pool<C> {
    inner: Mutex<Inner<C>>,
    freed: Condvar,
    most: usize,
}

struct Inner<C> {
    idle: Vec<(C, Instant)>,
    used: usize,
}

impl<C> Pool<C> {
    pub fn new(most: usize) -> Self {
        Self { inner: Mutex::new(Inner { idle: Vec::new(), used: 0 }), freed: Condvar::new(), most: most.max(1) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<C>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place in the pool; none if none came free in time.
    pub fn slot(&self, limit: Duration) -> Option<Slot<'_, C>> {
        let inner = self.lock();
        let full = |inner: &mut Inner<C>| inner.used >= self.most;
        let (mut inner, _) = self.freed.wait_timeout_while(inner, limit, full).unwrap_or_else(PoisonError::into_inner);
        if inner.used >= self.most {
            return None;
        }
        inner.used += 1;
        Some(Slot { pool: self })
    }
}

/// The right to use one connection.
pub(super) struct Slot<'p, C> {
    pool: &'p Pool<C>,
}

impl<C> Slot<'_, C> {
    /// A connection that was kept, at most so old. Older ones are closed.
    pub fn kept(&self, age_max: Duration) -> Option<C> {
        let mut inner = self.pool.lock();
        let now = Instant::now();
        let old: Vec<_> = inner.idle.extract_if(.., |(_, since)| now.duration_since(*since) > age_max).collect();
        let kept = inner.idle.pop();
        drop(inner);
        // Closing may take a moment: not under the lock.
        drop(old);
        kept.map(|(connection, _)| connection)
    }

    /// Keeps a connection for the next file.
    pub fn keep(&self, connection: C) {
        self.pool.lock().idle.push((connection, Instant::now()));
    }
}

impl<C> Drop for Slot<'_, C> {
    fn drop(&mut self) {
        let mut inner = self.pool.lock();
        inner.used = inner.used.saturating_sub(1);
        drop(inner);
        self.pool.freed.notify_one();
    }
}
