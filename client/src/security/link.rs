//! A connection that ends with the right to it: when the other end's certificate is revoked, at once, or has run out;
//! and for one without a certificate after a short time, since it has nothing to do here but to join.
//!
//! A connection that is open outlives a renewal of either end's certificate, until the old one runs out.

use crate::security::role::PeerIdentity;
use crate::security::tls::Credentials;
use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep;

/// Timers run by a clock that nobody sets; the end of a certificate is by the one that people set. So they are
/// compared again after this time.
const SLEEP_MAX: Duration = Duration::from_secs(3_600);

type End = Pin<Box<dyn Future<Output = &'static str> + Send>>;

/// A stream that ends when its `End` does.
pub struct Link<S> {
    stream: S,
    end: Option<End>,
    ended: Option<&'static str>,
}

impl<S> Link<S> {
    /// With an end whose certificate says this.
    pub fn known(stream: S, credentials: Arc<Credentials>, identity: PeerIdentity) -> Link<S> {
        let end = Box::pin(async move {
            let mut changes = credentials.changes();
            loop {
                if credentials.revocations().is_revoked(identity.serial) {
                    return "the certificate of the other end was revoked";
                }
                let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(identity.not_after_s);
                let Ok(left) = expires.duration_since(SystemTime::now()) else {
                    return "the certificate of the other end has expired";
                };
                tokio::select! {
                    _ = changes.changed() => (),
                    () = sleep(left.min(SLEEP_MAX)) => (),
                }
            }
        });
        Link { stream, end: Some(end), ended: None }
    }

    /// With an end that has no certificate.
    pub fn stranger(stream: S, time: Duration) -> Link<S> {
        let end = Box::pin(async move {
            sleep(time).await;
            "an end without a certificate has had its time"
        });
        Link { stream, end: Some(end), ended: None }
    }

    /// One whose end is nobody's concern here: a joining node's own.
    pub fn endless(stream: S) -> Link<S> {
        Link { stream, end: None, ended: None }
    }

    /// The stream inside.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(end) = &mut self.end {
            // Outside tokio's budget: it is asked at each read and must not make a busy stream yield more often.
            let end = std::pin::pin!(tokio::task::coop::unconstrained(end));
            if let Poll::Ready(reason) = end.poll(cx) {
                (self.end, self.ended) = (None, Some(reason));
            }
        }
        self.ended.map_or(Ok(()), |reason| Err(io::Error::new(ErrorKind::PermissionDenied, reason)))
    }
}

impl<S: fmt::Debug> fmt::Debug for Link<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("stream", &self.stream).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Link<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_end(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

/// Nothing is asked here: HTTP/2 always reads, and a read that fails ends the connection.
impl<S: AsyncWrite + Unpin> AsyncWrite for Link<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::role::Role;
    use crate::security::testing::{authority, credentials};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_connection_ends_with_its_certificate() {
        let credentials = credentials(&authority(1), Role::Peer, 1);
        let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        for left_s in [0, 1] {
            let identity = PeerIdentity { not_after_s: now_s + left_s, ..*credentials.identity().who() };
            let (ours, mut theirs) = tokio::io::duplex(16);
            let mut link = Link::known(ours, credentials.clone(), identity);
            theirs.write_all(b"x").await.unwrap();
            while link.read(&mut [0]).await.is_ok() {}
            let error = link.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.to_string(), "the certificate of the other end has expired");
            assert!(SystemTime::now() >= SystemTime::UNIX_EPOCH + Duration::from_secs(identity.not_after_s));
        }
    }

    #[tokio::test]
    async fn one_that_may_stay_reads_to_the_end() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let credentials = credentials(&authority(1), Role::Peer, 1);
        let mut link = Link::known(ours, credentials.clone(), *credentials.identity().who());
        theirs.write_all(b"all of it").await.unwrap();
        drop(theirs);
        let mut read = String::new();
        link.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "all of it");
        assert_eq!(Link::endless(link.stream).read(&mut [0]).await.unwrap(), 0);
    }
}
