//! One bidirectional stream: what a request and its answer travel on, over QUIC or inside the process.
//!
//! A half that is dropped before its end counts as abandoned: the peer sees a reset, never an end, so that half a body is
//! not mistaken for a whole one. Both kinds hold back a sender whose receiver is slow. Nothing here knows a timeout;
//! callers bound what they wait for ([`crate::Environment::within`]).

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use lazaret_protocol::codec::{self, CodecError};
use lazaret_protocol::limits::FRAME_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// Longest piece that lies in an in-process stream; longer ones are cut, without copying.
const LOCAL_PIECE_BYTES_MAX: usize = 256 * 1024;
/// Pieces that lie in one direction of an in-process stream: with the above, at most 4 MiB.
const LOCAL_PIECES_MAX: usize = 16;
/// Chunks taken from QUIC at once. A chunk is at most one datagram, so this is one stream lock for about 100 KiB.
const QUIC_CHUNKS_AT_ONCE: usize = 32;
/// What is set aside for bytes that a peer announced but has not sent yet.
const UNPROVEN_BYTES_MAX: usize = 64 * 1024;
/// Shorter pieces are copied together.
const SHORT_PIECE_BYTES: usize = 1024;
/// The application error code of an abandoned stream; it carries no meaning beyond that.
const ABANDONED: quinn::VarInt = quinn::VarInt::from_u32(1);

/// Why a stream could not be read or written on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer gave the stream up.
    #[error("the peer abandoned the stream")]
    Reset,
    /// The stream's end came before what was expected.
    #[error("the stream ended early")]
    EndedEarly,
    /// The connection under the stream is gone.
    #[error("connection lost: {0}")]
    ConnectionLost(String),
    /// What came is not a message.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A body frame over the limit.
    #[error("body frame of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    FrameTooLong(usize),
}

/// A pair of connected in-process streams, as a caller and a node see them.
pub fn local_pair() -> ((SendHalf, RecvHalf), (SendHalf, RecvHalf)) {
    let (request, request_receiver) = mpsc::channel(LOCAL_PIECES_MAX);
    let (answer, answer_receiver) = mpsc::channel(LOCAL_PIECES_MAX);
    let halves = |send, receive| {
        (SendHalf { kind: SendKind::Local(send), closed: false }, RecvHalf::new(RecvKind::Local(receive)))
    };
    (halves(request, answer_receiver), halves(answer, request_receiver))
}

/// Bytes in the pieces in which they came. A clone is the same bytes. Short pieces are copied together, so that their number
/// is bounded by their length and none keeps a whole datagram alive.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    long: VecDeque<Bytes>,
    /// The short ones since the last long one.
    short: BytesMut,
    length: usize,
}

impl Pieces {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bytes in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.long.iter().map(|piece| &piece[..]).chain(std::iter::once(&self.short[..]))
    }

    /// Puts a piece behind the others.
    pub fn push(&mut self, piece: Bytes) {
        self.length += piece.len();
        if piece.len() < SHORT_PIECE_BYTES {
            self.short.extend_from_slice(&piece);
        } else {
            self.end_short();
            self.long.push_back(piece);
        }
    }

    /// Puts all of `other` behind.
    pub fn extend(&mut self, other: Self) {
        other.long.into_iter().for_each(|piece| self.push(piece));
        self.push(other.short.freeze());
    }

    /// Takes the first `count` bytes away, or all if there are fewer.
    pub fn split_to(&mut self, count: usize) -> Self {
        if count >= self.length {
            return std::mem::take(self);
        }
        self.end_short();
        let mut front = Self::default();
        while front.length < count
            && let Some(mut piece) = self.long.pop_front()
        {
            let taken = piece.split_to(piece.len().min(count - front.length));
            self.length -= taken.len();
            front.push(taken);
            if !piece.is_empty() {
                self.long.push_front(piece);
            }
        }
        front
    }

    fn end_short(&mut self) {
        if !self.short.is_empty() {
            self.long.push_back(self.short.split().freeze());
        }
    }
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        let mut pieces = Self::default();
        pieces.push(bytes);
        pieces
    }
}

/// The sending half of a stream.
pub struct SendHalf {
    kind: SendKind,
    /// Finished or reset: dropping it no longer means anything.
    closed: bool,
}

enum SendKind {
    Quic(quinn::SendStream),
    Local(mpsc::Sender<LocalPiece>),
}

enum LocalPiece {
    Bytes(Bytes),
    End,
}

impl SendHalf {
    /// A half over QUIC.
    pub fn quic(stream: quinn::SendStream) -> Self {
        Self { kind: SendKind::Quic(stream), closed: false }
    }

    /// Sends `bytes`; waits while the peer is behind.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.send_all(&mut [bytes]).await
    }

    /// Sends one message.
    pub async fn send_message<M: Serialize>(&mut self, message: &M) -> Result<(), StreamError> {
        self.send(codec::encode(message)?.into()).await
    }

    /// Sends one body frame, or the end of a body when `frame` is empty.
    pub async fn send_body_frame(&mut self, frame: Bytes) -> Result<(), StreamError> {
        if frame.len() > FRAME_BYTES_MAX {
            return Err(StreamError::FrameTooLong(frame.len()));
        }
        let length = Bytes::copy_from_slice(&(frame.len() as u32).to_le_bytes());
        self.send_all(&mut [length, frame]).await
    }

    /// Says that nothing follows. It is no failure if the peer has already stopped reading: it may have all that it needs,
    /// and its answer tells.
    pub async fn finish(&mut self) -> Result<(), StreamError> {
        match &mut self.kind {
            SendKind::Quic(stream) => stream.finish().map_err(|_| StreamError::Reset)?,
            SendKind::Local(sender) => sender.send(LocalPiece::End).await.unwrap_or(()),
        }
        self.closed = true;
        Ok(())
    }

    /// Waits until the peer has received everything up to the end, or has said that it does not care. For who is about to
    /// close the connection.
    pub async fn delivered(&mut self) {
        if let SendKind::Quic(stream) = &mut self.kind {
            // An error means that the connection is gone, and with it the reason to wait.
            let _ = stream.stopped().await;
        }
    }

    /// Gives the stream up: the peer sees a reset.
    pub fn reset(mut self) {
        self.abandon();
    }

    async fn send_all(&mut self, pieces: &mut [Bytes]) -> Result<(), StreamError> {
        match &mut self.kind {
            SendKind::Quic(stream) => stream.write_all_chunks(pieces).await.map_err(|error| match error {
                quinn::WriteError::ConnectionLost(reason) => StreamError::ConnectionLost(reason.to_string()),
                _ => StreamError::Reset,
            }),
            SendKind::Local(sender) => {
                for piece in pieces {
                    while !piece.is_empty() {
                        let part = piece.split_to(piece.len().min(LOCAL_PIECE_BYTES_MAX));
                        sender.send(LocalPiece::Bytes(part)).await.map_err(|_| StreamError::Reset)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn abandon(&mut self) {
        if self.closed {
            return;
        }
        self.closed = true;
        // In process, the sender going away without an end is the reset.
        if let SendKind::Quic(stream) = &mut self.kind {
            // An error means that it is closed already.
            let _ = stream.reset(ABANDONED);
        }
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        // quinn would finish the stream, which would make half a body look whole.
        self.abandon();
    }
}

/// The receiving half of a stream. Dropping it tells the peer to stop.
pub struct RecvHalf {
    kind: RecvKind,
    /// Received and not yet handed out, in order; none of them empty.
    pieces: VecDeque<Bytes>,
    ended: bool,
}

enum RecvKind {
    Quic(quinn::RecvStream),
    Local(mpsc::Receiver<LocalPiece>),
}

impl RecvHalf {
    /// A half over QUIC.
    pub fn quic(stream: quinn::RecvStream) -> Self {
        Self::new(RecvKind::Quic(stream))
    }

    fn new(kind: RecvKind) -> Self {
        Self { kind, pieces: VecDeque::new(), ended: false }
    }

    /// The next bytes, however many there are; `None` at the end.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, StreamError> {
        while self.pieces.is_empty() && !self.ended {
            self.fill().await?;
        }
        Ok(self.pieces.pop_front())
    }

    /// Exactly `count` bytes. Bytes that lie in one piece are not copied.
    pub async fn read_exact(&mut self, count: usize) -> Result<Bytes, StreamError> {
        if count == 0 {
            return Ok(Bytes::new());
        }
        let mut piece = self.recv().await?.ok_or(StreamError::EndedEarly)?;
        if piece.len() >= count {
            let taken = piece.split_to(count);
            self.put_back(piece);
            return Ok(taken);
        }
        let mut gathered = BytesMut::with_capacity(count.min(UNPROVEN_BYTES_MAX.max(2 * piece.len())));
        loop {
            let taken = piece.split_to(piece.len().min(count - gathered.len()));
            gathered.extend_from_slice(&taken);
            if gathered.len() == count {
                self.put_back(piece);
                return Ok(gathered.freeze());
            }
            piece = self.recv().await?.ok_or(StreamError::EndedEarly)?;
        }
    }

    /// Exactly `count` bytes, in the pieces in which they come. Nothing is set aside for what has not come.
    pub async fn read_pieces(&mut self, count: usize) -> Result<Pieces, StreamError> {
        let mut pieces = Pieces::default();
        while pieces.len() < count {
            let mut piece = self.recv().await?.ok_or(StreamError::EndedEarly)?;
            pieces.push(piece.split_to(piece.len().min(count - pieces.len())));
            self.put_back(piece);
        }
        Ok(pieces)
    }

    /// One message.
    pub async fn recv_message<M: DeserializeOwned>(&mut self) -> Result<M, StreamError> {
        let mut length = [0; 4];
        length.copy_from_slice(&self.read_exact(4).await?);
        let body = self.read_exact(codec::frame_body_bytes(length)?).await?;
        Ok(codec::decode_body(&body)?)
    }

    /// The length of the next body frame, 0 at the body's end; the frame's bytes follow.
    pub async fn recv_body_frame_length(&mut self) -> Result<usize, StreamError> {
        let mut length = [0; 4];
        length.copy_from_slice(&self.read_exact(4).await?);
        let length = u32::from_le_bytes(length) as usize;
        if length > FRAME_BYTES_MAX { Err(StreamError::FrameTooLong(length)) } else { Ok(length) }
    }

    /// The next body frame; `None` at the body's end.
    pub async fn recv_body_frame(&mut self) -> Result<Option<Pieces>, StreamError> {
        match self.recv_body_frame_length().await? {
            0 => Ok(None),
            length => self.read_pieces(length).await.map(Some),
        }
    }

    fn put_back(&mut self, rest: Bytes) {
        if !rest.is_empty() {
            self.pieces.push_front(rest);
        }
    }

    /// Waits for more pieces or the end. Loses nothing when it is cancelled.
    async fn fill(&mut self) -> Result<(), StreamError> {
        match &mut self.kind {
            RecvKind::Quic(stream) => {
                let mut chunks = [const { Bytes::new() }; QUIC_CHUNKS_AT_ONCE];
                match stream.read_chunks(&mut chunks).await {
                    Ok(Some(count)) => {
                        self.pieces.extend(chunks.into_iter().take(count).filter(|chunk| !chunk.is_empty()));
                    }
                    Ok(None) => self.ended = true,
                    Err(quinn::ReadError::ConnectionLost(reason)) => {
                        return Err(StreamError::ConnectionLost(reason.to_string()));
                    }
                    Err(_) => return Err(StreamError::Reset),
                }
            }
            RecvKind::Local(receiver) => match receiver.recv().await {
                Some(LocalPiece::Bytes(piece)) => self.pieces.push_back(piece),
                Some(LocalPiece::End) => self.ended = true,
                None => return Err(StreamError::Reset),
            },
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_frames_and_the_end_arrive_whatever_the_pieces() {
        let ((mut send, _answer), (_back, mut recv)) = local_pair();
        let body = Bytes::from(vec![7; FRAME_BYTES_MAX]);
        let sent = body.clone();
        let sender = tokio::spawn(async move {
            send.send_message(&vec![1_u32, 2, 3]).await.unwrap();
            send.send_body_frame(sent).await.unwrap();
            send.send_body_frame(Bytes::new()).await.unwrap();
            for byte in codec::encode(&"in single bytes").unwrap() {
                send.send(Bytes::from(vec![byte])).await.unwrap();
            }
            send.finish().await.unwrap();
        });
        assert_eq!(recv.recv_message::<Vec<u32>>().await.unwrap(), [1, 2, 3]);
        let frame = recv.recv_body_frame().await.unwrap().unwrap();
        assert_eq!((frame.len(), frame.iter().collect::<Vec<_>>().concat()), (body.len(), body.to_vec()));
        assert!(recv.recv_body_frame().await.unwrap().is_none());
        assert_eq!(recv.recv_message::<String>().await.unwrap(), "in single bytes");
        assert_eq!(recv.recv().await.unwrap(), None);
        assert_eq!(recv.read_exact(1).await.unwrap_err(), StreamError::EndedEarly);
        sender.await.unwrap();
    }

    #[test]
    fn pieces_are_split_where_asked_and_short_ones_lie_together() {
        let bytes: Vec<u8> = (0..20_000u32).map(|at| at as u8).collect();
        let lengths = [1, 2, 3_000, 500, 700, 1, 5_000, 1_024, 1_023];
        let mut pieces = Pieces::default();
        let mut rest = Bytes::from(bytes.clone());
        lengths.into_iter().for_each(|length| pieces.push(rest.split_to(length)));
        pieces.push(rest);
        assert_eq!((pieces.len(), pieces.iter().filter(|piece| !piece.is_empty()).count()), (20_000, 7));
        for cut in [0, 1, 3, 4, 3_003, 4_000, 19_999, 20_000, 30_000] {
            let mut back = pieces.clone();
            let front = back.split_to(cut);
            let (front_bytes, back_bytes) = (front.iter().collect::<Vec<_>>(), back.iter().collect::<Vec<_>>());
            assert_eq!((front.len(), back.len()), (front_bytes.concat().len(), back_bytes.concat().len()));
            assert_eq!((front_bytes.concat(), back_bytes.concat()), {
                let (front, back) = bytes.split_at(cut.min(20_000));
                (front.to_vec(), back.to_vec())
            });
            let mut joined = front;
            joined.extend(back);
            assert_eq!(joined.iter().collect::<Vec<_>>().concat(), bytes);
        }
    }

    #[tokio::test]
    async fn a_dropped_sender_is_a_reset_and_a_dropped_receiver_stops_the_sender() {
        let ((mut send, answer), (mut back, mut recv)) = local_pair();
        send.send(Bytes::from_static(b"half")).await.unwrap();
        drop(send);
        assert_eq!(recv.read_exact(5).await.unwrap_err(), StreamError::Reset);
        drop(answer);
        assert_eq!(back.send(Bytes::from_static(b"x")).await.unwrap_err(), StreamError::Reset);
        back.finish().await.unwrap();
    }

    #[tokio::test]
    async fn an_announced_length_over_the_limit_is_refused_before_its_bytes() {
        let ((mut send, _answer), (_back, mut recv)) = local_pair();
        send.send(Bytes::from_static(&[0xff; 8])).await.unwrap();
        assert_eq!(recv.recv_body_frame().await.unwrap_err(), StreamError::FrameTooLong(u32::MAX as usize));
        assert!(matches!(recv.recv_message::<u8>().await.unwrap_err(), StreamError::Codec(CodecError::TooLong(_))));
        let over = send.send_body_frame(Bytes::from(vec![0; FRAME_BYTES_MAX + 1])).await.unwrap_err();
        assert_eq!(over, StreamError::FrameTooLong(FRAME_BYTES_MAX + 1));
    }
}
