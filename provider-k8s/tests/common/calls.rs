//! A client whose calls to the API server are counted, and can be kept from getting there.

#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use http::{Method, Request};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::BoxError;
use tower::buffer::BufferLayer;
use tower::filter::AsyncFilterLayer;

/// What a client has asked.
#[derive(Default)]
pub(crate) struct Calls {
    counts: Mutex<BTreeMap<String, usize>>,
    /// Calls of this method, to a path with this in it, wait for ever.
    held: Option<(Method, &'static str)>,
}

impl Calls {
    pub(crate) fn holding(method: Method, path: &'static str) -> Self {
        Self {
            held: Some((method, path)),
            ..Self::default()
        }
    }

    /// How many there were of each kind since the last time.
    pub(crate) fn take(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut self.counts.lock().unwrap())
    }

    pub(crate) fn client(self: &Arc<Self>, config: Config) -> Client {
        let calls = Arc::clone(self);
        let layer = AsyncFilterLayer::new(move |request: Request<Body>| {
            let is_held = calls.count(&request);
            async move {
                if is_held {
                    std::future::pending::<()>().await;
                }
                Ok::<_, BoxError>(request)
            }
        });
        let builder = ClientBuilder::try_from(config).unwrap();
        builder.with_layer(&BufferLayer::new(1024)).with_layer(&layer).build()
    }

    /// Counts a call, and says whether it is held.
    fn count(&self, request: &Request<Body>) -> bool {
        let path = request.uri().path();
        // The collection and what of an object is asked for, without the object's name.
        let parts: Vec<&str> = path
            .split('/')
            .skip_while(|part| *part != "namespaces")
            .skip(2)
            .collect();
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch="));
        let kind = match (parts.as_slice(), is_watch) {
            ([collection], true) => format!("watch {collection}"),
            // What a watch that begins anew does first.
            ([collection], false) if request.method() == Method::GET => format!("watch {collection}, listed"),
            ([collection, _, part], _) => format!("{} {collection}/{part}", request.method()),
            ([collection, ..], _) => format!("{} {collection}", request.method()),
            ([], _) => path.to_owned(),
        };
        *self.counts.lock().unwrap().entry(kind).or_default() += 1;
        self.held
            .as_ref()
            .is_some_and(|(method, part)| request.method() == method && path.contains(part))
    }
}
