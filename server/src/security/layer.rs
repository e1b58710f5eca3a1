//! The table of rules in front of every service: a call that may not be made is answered here, noted in the audit
//! log, and never reaches its service.

use crate::security::accept::Remote;
use crate::security::audit::{Audit, Entry};
use crate::security::rules::{Verdict, check};
use brickfs_client::quiet_socket::Peer;
use http::{Extensions, Request, Response};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// Puts the rules in front of a service.
#[derive(Clone)]
pub struct RulesLayer {
    audit: Arc<Audit>,
}

impl RulesLayer {
    /// Refusals go into this log.
    pub fn new(audit: Arc<Audit>) -> RulesLayer {
        RulesLayer { audit }
    }
}

impl<S> Layer<S> for RulesLayer {
    type Service = Rules<S>;

    fn layer(&self, inner: S) -> Rules<S> {
        Rules { inner, audit: self.audit.clone() }
    }
}

/// A service behind the rules.
#[derive(Clone)]
pub struct Rules<S> {
    inner: S,
    audit: Arc<Audit>,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Rules<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer<S::Error> {
        let path = request.uri().path();
        let identity = request.extensions().get::<Remote>().and_then(|remote| remote.identity);
        let user = request.extensions().get::<Peer>().map(|peer| {
            // A peer that the kernel does not name is nobody.
            peer.credentials.map_or(u32::MAX, |credentials| credentials.uid())
        });
        match check(path, identity.as_ref(), user) {
            Verdict::Allowed => Box::pin(self.inner.call(request)),
            Verdict::Refused(refusal) => {
                let (what, result) = (path.to_owned(), format!("refused: {refusal}"));
                let entry = Entry { what, result, ..entry_of(request.extensions()) };
                match entry.role {
                    // A user of this machine, too, may try as often as it likes.
                    "stranger" | "local" => self.audit.record_stranger(entry),
                    _ => self.audit.record(entry),
                }
                let response = Status::permission_denied(refusal.to_string()).into_http();
                Box::pin(std::future::ready(Ok(response)))
            }
        }
    }
}

/// Who has sent a request, as the audit log says it.
pub fn entry_of(extensions: &Extensions) -> Entry {
    if let Some(remote) = extensions.get::<Remote>() {
        let (who, role) = match &remote.identity {
            Some(identity) => (identity.id.to_string(), identity.role.as_str()),
            None => (String::new(), "stranger"),
        };
        return Entry { who, role, from: remote.address.to_string(), ..Entry::default() };
    }
    let credentials = extensions.get::<Peer>().and_then(|peer| peer.credentials);
    let who = credentials.map_or_else(|| "unknown".to_owned(), |credentials| format!("uid {}", credentials.uid()));
    Entry { who, role: "local", from: "local".to_owned(), ..Entry::default() }
}
