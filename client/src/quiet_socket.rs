//! A Unix stream socket that wakes nobody for nothing.
//!
//! Linux tells a sender that there is room whenever its peer has read something (`unix_write_space`), also
//! if it never waited for room. A socket that is registered for reading and writing, as tokio's is, so has
//! its thread woken once more for every message that it has sent. This one is registered for reading; for
//! writing only from the moment that a write finds no room until it has gone through.

#![allow(unsafe_code)] // what safe wrappers of these calls there are zero every buffer first

use rustix::fd::AsFd as _;
use std::io::{self, ErrorKind, IoSlice, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tonic::transport::server::{Connected, UdsConnectInfo};

/// See the file's head.
pub struct QuietSocket {
    socket: AsyncFd<UnixStream>,
    /// The same socket while a write waits for room.
    waiting: Option<AsyncFd<UnixStream>>,
    peer: UdsConnectInfo,
}

impl QuietSocket {
    /// Takes over a connected socket. Within a runtime.
    pub fn new(socket: tokio::net::UnixStream) -> io::Result<QuietSocket> {
        let peer = socket.connect_info();
        let socket = register(socket.into_std()?, Interest::READABLE)?;
        Ok(QuietSocket { socket, waiting: None, peer })
    }

    fn poll_writing(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if self.waiting.is_none() {
            match write(self.socket.get_ref()) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let again = self.socket.get_ref().try_clone()?;
                    self.waiting = Some(register(again, Interest::WRITABLE)?);
                }
                done => return Poll::Ready(done),
            }
        }
        while let Some(waiting) = &self.waiting {
            let mut room = ready!(waiting.poll_write_ready(cx))?;
            if let Ok(done) = room.try_io(|socket| write(socket.get_ref())) {
                self.waiting = None;
                return Poll::Ready(done);
            }
        }
        Poll::Ready(Err(ErrorKind::WouldBlock.into()))
    }
}

fn register(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: a UnixStream owns its descriptor and keeps it, the same one, until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

impl AsyncRead for QuietSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut readable = ready!(self.socket.poll_read_ready(cx))?;
            let read = readable.try_io(|socket| {
                // SAFETY: what is read into the buffer only ever initialises it.
                let room = unsafe { buf.unfilled_mut() };
                let (read, _) = rustix::io::read(socket.get_ref().as_fd(), room)?;
                Ok(read.len())
            });
            if let Ok(read) = read {
                let read = read?;
                if 0 < read && read < buf.remaining() {
                    // The socket is drained; what comes from now on is told of again (epoll(7), edge-triggered).
                    readable.clear_ready();
                }
                // SAFETY: read(2) has written this many bytes to the front of the unfilled part.
                unsafe { buf.assume_init(read) };
                buf.advance(read);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for QuietSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_writing(cx, |mut socket| socket.write(buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_writing(cx, |mut socket| socket.write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.get_ref().shutdown(Shutdown::Write))
    }
}

impl Connected for QuietSocket {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.peer.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test(flavor = "current_thread")]
    async fn more_than_the_socket_holds_goes_through_and_the_end_is_seen() {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let (mut ours, mut theirs) = (QuietSocket::new(ours).unwrap(), QuietSocket::new(theirs).unwrap());
        let sent: Vec<u8> = (0..8_000_000u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let sender = tokio::spawn(async move {
            ours.write_all(&sent).await.unwrap();
            assert!(ours.waiting.is_none(), "no write waits any more");
            ours.shutdown().await.unwrap();
            let mut answer = Vec::new();
            ours.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).await.unwrap();
        assert!(received == expected);
        theirs.write_all(b"answer").await.unwrap();
        drop(theirs);
        assert_eq!(sender.await.unwrap(), b"answer");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_peer_that_is_gone_is_an_error() {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let mut ours = QuietSocket::new(ours).unwrap();
        drop(theirs);
        assert_eq!(ours.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
