//! A client that counts API calls and can block some of them.

#![allow(dead_code, reason = "each test program uses only a part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use http::{Method, Request};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::BoxError;
use tower::buffer::BufferLayer;
use tower::filter::AsyncFilterLayer;

/// The calls that a client has made.
#[derive(Default)]
pub(crate) struct Calls {
    counts: Mutex<BTreeMap<String, usize>>,
    /// Calls with this method, and this text in their path, never complete.
    blocked: Option<(Method, &'static str)>,
}

impl Calls {
    pub(crate) fn blocking(method: Method, path: &'static str) -> Self {
        Self {
            blocked: Some((method, path)),
            ..Self::default()
        }
    }

    /// Returns the counts by kind and resets them.
    pub(crate) fn take(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut self.counts.lock().unwrap())
    }

    pub(crate) fn client(self: &Arc<Self>, config: Config) -> Client {
        let calls = Arc::clone(self);
        let layer = AsyncFilterLayer::new(move |request: Request<Body>| {
            let is_blocked = calls.count(&request);
            async move {
                if is_blocked {
                    std::future::pending::<()>().await;
                }
                Ok::<_, BoxError>(request)
            }
        });
        let builder = ClientBuilder::try_from(config).unwrap();
        builder.with_layer(&BufferLayer::new(1024)).with_layer(&layer).build()
    }

    /// Counts a call. Returns whether it is blocked.
    fn count(&self, request: &Request<Body>) -> bool {
        let path = request.uri().path();
        // The collection and subresource, without the object's name.
        let parts: Vec<&str> = path
            .split('/')
            .skip_while(|part| *part != "namespaces")
            .skip(2)
            .collect();
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch="));
        let kind = match (parts.as_slice(), is_watch) {
            ([collection], true) => format!("watch {collection}"),
            // A watch starts with a list.
            ([collection], false) if request.method() == Method::GET => format!("watch {collection}, listed"),
            ([collection, _, part], _) => format!("{} {collection}/{part}", request.method()),
            ([collection, ..], _) => format!("{} {collection}", request.method()),
            ([], _) => path.to_owned(),
        };
        *self.counts.lock().unwrap().entry(kind).or_default() += 1;
        self.blocked
            .as_ref()
            .is_some_and(|(method, part)| request.method() == method && path.contains(part))
    }
}
