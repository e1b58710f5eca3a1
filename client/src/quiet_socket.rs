//! A Unix stream socket that wakes nobody for nothing.
//!
//! Linux tells a sender that there is room whenever its peer has read something (`unix_write_space`), also
//! if it never waited for room. A socket that is registered for reading and writing, as tokio's is, so has
//! its thread woken once more for every message that it has sent. This one is registered for reading; for
//! writing only from the moment that a write finds no room until it has gone through.
//!
//! Open files travel beside the bytes, see `descriptors`: what an end has put in its outbox goes with the next
//! bytes that it writes, so that it is there when they are read.

#![allow(unsafe_code)] // what safe wrappers of these calls there are zero every buffer first

use crate::descriptors::{Inbox, Outbox, PASSED_MAX};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io::{self, ErrorKind, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::unix::UCred;
use tonic::transport::server::Connected;

/// The other end, as requests that come over the socket know it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Who it is.
    pub credentials: Option<UCred>,
    /// Files to go with what is written.
    pub outbox: Arc<Outbox>,
}

/// See the file's head.
pub struct QuietSocket {
    socket: AsyncFd<UnixStream>,
    /// The same socket while a write waits for room.
    waiting: Option<AsyncFd<UnixStream>>,
    peer: Peer,
    /// Files that come with what is read; without it none are taken.
    inbox: Option<Arc<Inbox>>,
}

impl QuietSocket {
    /// Takes over a connected socket. Within a runtime.
    pub fn new(socket: tokio::net::UnixStream) -> io::Result<QuietSocket> {
        let peer = Peer { credentials: socket.peer_cred().ok(), outbox: Arc::default() };
        let socket = register(socket.into_std()?, Interest::READABLE)?;
        Ok(QuietSocket { socket, waiting: None, peer, inbox: None })
    }

    /// The same, and files that come with what is read go into the inbox.
    pub fn with_inbox(socket: tokio::net::UnixStream, inbox: Arc<Inbox>) -> io::Result<QuietSocket> {
        Ok(QuietSocket { inbox: Some(inbox), ..QuietSocket::new(socket)? })
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

/// Writes bytes with files beside them.
fn write_with(socket: &UnixStream, bufs: &[IoSlice<'_>], files: &[OwnedFd]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
    ancillary.push(SendAncillaryMessage::ScmRights(&files));
    Ok(rustix::net::sendmsg(socket, bufs, &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Reads bytes into room that need not be initialised, and files into the inbox. Answers also whether more may be
/// there although the room was not filled: Linux ends a read behind bytes that files came with.
fn read_with(socket: &UnixStream, room: &mut [MaybeUninit<u8>], inbox: &Inbox) -> io::Result<(usize, bool)> {
    /// Room for the files of one read, aligned as the kernel wants it.
    #[repr(C, align(8))]
    struct Control([MaybeUninit<u8>; rustix::cmsg_space!(ScmRights(PASSED_MAX))]);
    let mut control = Control([MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED_MAX))]);
    let mut bytes = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: zero is a value of every field of a msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut bytes;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: the message points to `room` and `control`, which live and are not used otherwise until it returns.
    let read = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: recvmsg(2) has filled the message in.
    let files = unsafe { files_of(&message) };
    let has_files = !files.is_empty();
    inbox.received(files);
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        // This process may have no more open files; which ones are missing is not known.
        inbox.lost_count();
    }
    Ok((read, has_files))
}

/// The files that came with a message; each may be taken once.
///
/// # Safety
/// recvmsg(2) has filled the message in, and its control part is still there.
unsafe fn files_of(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut files = Vec::new();
    // SAFETY: cmsg(3), on a message as the kernel has filled it in: each header lies within the control part, and
    // behind it as many bytes as its length says.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(part) = header.as_ref() {
            if (part.cmsg_level, part.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let data = libc::CMSG_DATA(part).cast::<libc::c_int>();
                let count = (part.cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<libc::c_int>();
                files.extend((0..count).map(|n| OwnedFd::from_raw_fd(data.add(n).read_unaligned())));
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    files
}

impl AsyncRead for QuietSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut readable = ready!(self.socket.poll_read_ready(cx))?;
            let read = readable.try_io(|socket| {
                // SAFETY: what is read into the buffer only ever initialises it.
                let room = unsafe { buf.unfilled_mut() };
                match &self.inbox {
                    Some(inbox) => read_with(socket.get_ref(), room, inbox),
                    None => Ok((rustix::io::read(socket.get_ref().as_fd(), room)?.0.len(), false)),
                }
            });
            if let Ok(read) = read {
                let (read, has_more) = read?;
                if 0 < read && read < buf.remaining() && !has_more {
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
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outbox = self.peer.outbox.clone();
        self.poll_writing(cx, move |mut socket| {
            outbox.send(|files| match files {
                [] => socket.write_vectored(bufs),
                files => write_with(socket, bufs, files),
            })
        })
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
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
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
    async fn files_come_with_the_bytes_that_were_written_after_them() {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let inbox = Arc::new(Inbox::default());
        let mut ours = QuietSocket::new(ours).unwrap();
        let mut theirs = QuietSocket::with_inbox(theirs, inbox.clone()).unwrap();
        let (outbox, file) = (ours.connect_info().outbox, || std::fs::File::open("/proc/self/status").unwrap().into());
        ours.write_all(b"before").await.unwrap();
        assert_eq!((outbox.pass(file()), outbox.pass(file())), (Some(1), Some(2)));
        ours.write_all(b"with two").await.unwrap();
        assert_eq!(outbox.pass(file()), Some(3));
        ours.write_all(b"with one").await.unwrap();
        ours.write_all(&[7; 1_000]).await.unwrap();
        let mut received = vec![0; 6 + 8 + 8];
        theirs.read_exact(&mut received).await.unwrap();
        assert_eq!(received, b"beforewith twowith one");
        assert!(inbox.take(2).is_some() && inbox.take(2).is_none() && inbox.take(1).is_none());
        assert!(inbox.take(3).is_some() && inbox.take(4).is_none());
        let mut rest = [0; 1_000];
        theirs.read_exact(&mut rest).await.unwrap();
        assert_eq!(rest, [7; 1_000], "what was read behind a file's bytes is told of again");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_file_waits_with_its_bytes_for_room() {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let inbox = Arc::new(Inbox::default());
        let mut ours = QuietSocket::new(ours).unwrap();
        let mut theirs = QuietSocket::with_inbox(theirs, inbox.clone()).unwrap();
        let outbox = ours.connect_info().outbox;
        let full = futures::future::poll_fn(|cx| {
            loop {
                match Pin::new(&mut ours).poll_write(cx, &[1; 65536]) {
                    Poll::Ready(written) => assert!(written.unwrap() > 0),
                    Poll::Pending => return Poll::Ready(()),
                }
            }
        });
        full.await;
        outbox.pass(std::fs::File::open("/proc/self/status").unwrap().into());
        let sender = tokio::spawn(async move { ours.write_all(b"late").await.map(|()| ours) });
        let mut read = Vec::new();
        while !read.ends_with(b"late") {
            assert!(theirs.read_buf(&mut read).await.unwrap() > 0);
        }
        assert!(inbox.take(1).is_some());
        drop(sender.await.unwrap().unwrap());
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
