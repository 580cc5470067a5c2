//! Shares and their live pages. `tests/e2e` tests hostile outputs in a browser.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Answer, Served, UNKNOWN};
use kernel_manager::StartRequest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// Starts a kernel that has run a cell, and returns its address.
async fn kernel(served: &Served) -> String {
    let model = served.start_kernel(json!({"name": "echo"})).await;
    let path = format!("/api/kernels/{}", model["id"].as_str().unwrap());
    run(served, &path, "shown", "a").await;
    path
}

async fn run(served: &Served, kernel: &str, code: &str, cell: &str) {
    let body = json!({"code": code, "cellId": cell});
    let started = served.send("POST", &format!("{kernel}/executions"), body).await;
    assert_eq!(started.status, 202, "{started:?}");
}

async fn share(served: &Served, kernel: &str, body: Value) -> Value {
    let made = served.send("POST", &format!("{kernel}/shares"), body).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()
}

/// A request without the gateway's token.
async fn open(served: &Served, path: &str) -> Answer {
    served.send_with_headers("GET", path, &[], "").await
}

/// Checks that the link is refused with a page that has no information about the kernel.
#[track_caller]
fn assert_refused(answer: &Answer) {
    assert_eq!(answer.status, 403, "{answer:?}");
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    let text = String::from_utf8_lossy(&answer.body);
    assert!(text.contains("This link does not work"), "{text}");
    assert!(!text.contains("<script"), "{text}");
}

/// An open stream of events.
struct Events {
    stream: TcpStream,
    text: String,
}

impl Events {
    async fn open(served: &Served, path: &str) -> Self {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let request = format!("GET {path}/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self {
            stream,
            text: String::new(),
        }
    }

    /// Reads until the events contain this text.
    async fn until(&mut self, wanted: &str) {
        let reading = async {
            let mut bytes = [0; 4096];
            while !self.text.contains(wanted) {
                let read = self.stream.read(&mut bytes).await.unwrap();
                assert_ne!(read, 0, "the events ended: {}", self.text);
                self.text.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        };
        timeout(Duration::from_secs(60), reading)
            .await
            .expect("no such event in time");
    }

    /// Reads until the gateway closes the stream.
    async fn until_closed(&mut self) {
        let mut rest = Vec::new();
        timeout(Duration::from_secs(60), self.stream.read_to_end(&mut rest))
            .await
            .expect("the events did not end in time")
            .unwrap();
        self.text.push_str(&String::from_utf8_lossy(&rest));
    }
}

#[tokio::test]
async fn a_share_shows_the_cells_without_the_gateways_token() {
    let served = Served::with(|options| options.base_url = "/hub".parse().unwrap(), |_| {}).await;
    let model = served
        .send("POST", "/hub/api/kernels", json!({"name": "echo"}))
        .await
        .json();
    let kernel = format!("/hub/api/kernels/{}", model["id"].as_str().unwrap());
    run(&served, &kernel, "one", "a").await;
    let made = share(&served, &kernel, json!({"path": "<b>x</b>.ipynb"})).await;
    let (token, url) = (made["token"].as_str().unwrap(), made["url"].as_str().unwrap());
    assert_eq!(url, format!("/hub/live/{token}"));
    assert!(token.len() >= 32, "at least 128 bits");

    let page = open(&served, url).await;
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(page.header("referrer-policy"), "no-referrer");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("cache-control"), "no-store");
    let policy = page.header("content-security-policy");
    for directive in [
        "default-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(directive), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    // Its scripts and styles have the nonce of this response, which no other response has.
    let nonce = policy
        .split("script-src 'nonce-")
        .nth(1)
        .unwrap()
        .split('\'')
        .next()
        .unwrap();
    let text = String::from_utf8(page.body.to_vec()).unwrap();
    assert_eq!(text.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    assert_eq!(
        text.matches("<script").count() + text.matches("<style nonce=\"NONCE").count(),
        1
    );
    assert!(!text.contains("NONCE") && !text.contains("<b>x</b>") && !text.contains(token));
    assert!(
        !open(&served, url)
            .await
            .header("content-security-policy")
            .contains(nonce)
    );

    let mut events = Events::open(&served, url).await;
    events.until("\"code\":\"one\"").await;
    events.until("\"status\":\"ok\"").await;
    events.until("<b>x</b>.ipynb").await;
    // A later cell follows live, and a cell that runs again replaces its previous run.
    run(&served, &kernel, "two", "b").await;
    events.until("\"code\":\"two\"").await;
    run(&served, &kernel, "three", "a").await;
    events.until("\"code\":\"three\"").await;
    let mut later = Events::open(&served, url).await;
    later.until("\"code\":\"three\"").await;
    assert!(!later.text.contains("\"code\":\"one\""), "{}", later.text);

    // The link opens nothing else.
    for path in ["/hub/api/kernels", &kernel] {
        for query in [format!("?token={token}"), String::new()] {
            assert_eq!(open(&served, &format!("{path}{query}")).await.status, 401);
        }
    }
    // After the kernel's end, the page shows its cells.
    assert_eq!(served.ask("DELETE", &kernel).await.status, 204);
    events.until("event: end\ndata: {\"reason\":\"kernel\"}").await;
    let mut past = Events::open(&served, url).await;
    past.until("event: end\ndata: {\"reason\":\"kernel\"}").await;
    assert!(past.text.contains("\"code\":\"three\"") && past.text.contains("\"state\":\"dead\""));
}

#[tokio::test]
async fn a_kernel_that_is_not_attached_yet_has_not_ended() {
    let folder = tempfile::tempdir().unwrap();
    let file = Some(folder.path().join("shares.json"));
    let served = Served::with(|options| options.shares_file = file.clone(), |_| {}).await;
    let kernel = kernel(&served).await;
    let url = share(&served, &kernel, json!({})).await["url"]
        .as_str()
        .unwrap()
        .to_owned();
    let attaches = served.provider.attaches.clone();
    attaches.send_replace(false);
    let served = served
        .again(
            |options| options.shares_file = file.clone(),
            |options| options.restore_timeout = Duration::ZERO,
        )
        .await;
    let mut events = Events::open(&served, &url).await;
    events.until("\"state\":\"unknown\"").await;
    events.until("\"code\":\"shown\"").await;
    attaches.send_replace(true);
    events.until_closed().await;
    assert!(!events.text.contains("event: end"), "{}", events.text);
    let mut events = Events::open(&served, &url).await;
    events.until("\"state\":\"idle\"").await;
    run(&served, &kernel, "later", "b").await;
    events.until("\"code\":\"later\"").await;
}

#[tokio::test]
async fn a_link_shows_nothing_of_another_kernel_with_the_same_id() {
    let served = Served::start().await;
    let id = "11111111-2222-4333-8444-555555555555";
    let kernel = format!("/api/kernels/{id}");
    let start = || served.start_kernel(json!({"kernel_id": id}));
    start().await;
    run(&served, &kernel, "first", "a").await;
    let first = share(&served, &kernel, json!({})).await["url"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut events = Events::open(&served, &first).await;
    events.until("\"code\":\"first\"").await;
    assert_eq!(served.ask("DELETE", &kernel).await.status, 204);
    assert_eq!(open(&served, &first).await.status, 200);

    // Starts the kernel without the gateway, because the gateway would remove the share.
    let mut request = StartRequest::new("echo");
    request.id = Some(id.parse().unwrap());
    served.manager.start(request).await.unwrap();
    assert_refused(&open(&served, &first).await);
    assert_refused(&open(&served, &format!("{first}/events")).await);
    assert_eq!(served.ask("DELETE", &kernel).await.status, 204);
    start().await;
    assert_refused(&open(&served, &first).await);
    let listed = served.ask("GET", &format!("{kernel}/shares")).await.json();
    assert_eq!(listed["shares"], json!([]));
    // The log also has the cells of the previous kernels.
    run(&served, &kernel, "second", "b").await;
    let second = share(&served, &kernel, json!({})).await["url"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut events = Events::open(&served, &second).await;
    events.until("\"code\":\"second\"").await;
    assert!(!events.text.contains("\"code\":\"first\""), "{}", events.text);

    assert_eq!(served.ask("DELETE", &kernel).await.status, 204);
    events.until("event: end\ndata: {\"reason\":\"kernel\"}").await;
    drop(events);
    let removed = async {
        // Fails until the page has closed the log.
        while served.ask("DELETE", &format!("/api/logs/{id}")).await.status != 204 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(60), removed)
        .await
        .expect("the log is not removed in time");
    assert_refused(&open(&served, &second).await);
}

#[tokio::test]
async fn one_link_does_not_use_up_the_viewers_of_others() {
    let served = Served::start().await;
    let kernel = kernel(&served).await;
    run(&served, &kernel, &"x".repeat(100_000), "long").await;
    let url = share(&served, &kernel, json!({})).await["url"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut viewers = Vec::new();
    for _ in 0..32 {
        let mut events = Events::open(&served, &url).await;
        events.until("\"code\":\"shown\"").await;
        // Only the start of long code is shown.
        events.until("xxx\\n…\"").await;
        viewers.push(events);
    }
    let refused = open(&served, &format!("{url}/events")).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    let other = share(&served, &kernel, json!({})).await;
    let mut events = Events::open(&served, other["url"].as_str().unwrap()).await;
    events.until("\"code\":\"shown\"").await;
    // After a viewer has left, another one is accepted.
    drop(viewers.pop());
    let again = async {
        loop {
            let mut events = Events::open(&served, &url).await;
            events.until("\r\n\r\n").await;
            if events.text.starts_with("HTTP/1.1 200") {
                return events.until("\"code\":\"shown\"").await;
            }
        }
    };
    timeout(Duration::from_secs(60), again).await.expect("no room in time");
}

#[tokio::test]
async fn shares_can_be_turned_off() {
    let served = Served::with(|options| options.allow_shares = false, |_| {}).await;
    let kernel = kernel(&served).await;
    let shares = format!("{kernel}/shares");
    served.send("POST", &shares, "{}").await.error(404);
    served.ask("GET", &shares).await.error(404);
    served.ask("DELETE", &format!("{shares}/{UNKNOWN}")).await.error(404);
    for path in ["/live/x", "/live/x/events"] {
        assert_eq!(open(&served, path).await.status, 404);
    }
    for path in ["/api", &kernel] {
        let features = served.ask("GET", path).await.json()["kernelmux"]["features"].clone();
        let features = features.as_array().unwrap();
        assert!(features.contains(&json!("follow")) && !features.contains(&json!("shares")));
    }
}

#[tokio::test]
async fn wrong_expired_and_revoked_links_are_refused_alike() {
    let served = Served::start().await;
    let kernel = kernel(&served).await;
    let made = share(&served, &kernel, json!({})).await;
    let url = made["url"].as_str().unwrap().to_owned();
    for path in [
        "/live/x".to_owned(),
        format!("{url}0"),
        url[..url.len() - 1].to_owned(),
        format!("/live/{}", made["id"].as_str().unwrap()),
    ] {
        assert_refused(&open(&served, &path).await);
        assert_refused(&open(&served, &format!("{path}/events")).await);
    }

    let listed = served.ask("GET", &format!("{kernel}/shares")).await.json();
    assert_eq!(listed["shares"].as_array().unwrap().len(), 1);
    assert_eq!(listed["shares"][0]["id"], made["id"]);
    assert!(!listed.to_string().contains(made["token"].as_str().unwrap()));

    // Revoking ends the pages that are open.
    let mut events = Events::open(&served, &url).await;
    events.until("event: cell").await;
    let address = format!("{kernel}/shares/{}", made["id"].as_str().unwrap());
    assert_eq!(served.ask("DELETE", &address).await.status, 204);
    events.until("event: end\ndata: {\"reason\":\"link\"}").await;
    assert_refused(&open(&served, &url).await);
    served.ask("DELETE", &address).await.error(404);

    // A slow machine may open the page only after the end of a short share.
    for seconds in [1, 2, 4, 8, 16, 32] {
        let brief = share(&served, &kernel, json!({"expires_in_s": seconds})).await;
        let url = brief["url"].as_str().unwrap();
        let mut events = Events::open(&served, url).await;
        events.until("\r\n\r\n").await;
        if events.text.starts_with("HTTP/1.1 200") {
            events.until("event: end\ndata: {\"reason\":\"link\"}").await;
            assert_refused(&open(&served, url).await);
            break;
        }
        assert_ne!(seconds, 32, "{}", events.text);
    }

    for (body, status) in [
        (json!({"expires_in_s": 0}), 400),
        (json!({"expires_in_s": 1_u64 << 40}), 400),
        (json!({"path": "x".repeat(2_000)}), 400),
        (json!({"path": 7}), 400),
    ] {
        served
            .send("POST", &format!("{kernel}/shares"), body)
            .await
            .error(status);
    }
    served
        .send("POST", &format!("/api/kernels/{UNKNOWN}/shares"), "{}")
        .await
        .error(404);
}

#[tokio::test]
async fn guesses_are_slowed_down_but_valid_links_always_work() {
    let served = Served::start().await;
    let kernel = kernel(&served).await;
    let url = share(&served, &kernel, json!({})).await["url"]
        .as_str()
        .unwrap()
        .to_owned();
    // The answer to each guess beyond twenty is a second later than the previous answer. Guesses beyond fifty are
    // refused with 429.
    let served = Arc::new(served);
    let (locked_out, mut is_locked_out) = watch::channel(false);
    let mut guesses = JoinSet::new();
    let guessing = async {
        while !*is_locked_out.borrow() {
            let (served, locked_out) = (served.clone(), locked_out.clone());
            guesses.spawn(async move {
                let refused = open(&served, "/live/guess").await;
                if refused.status == 429 {
                    assert!(refused.header("retry-after").parse::<u64>().unwrap() > 0);
                    locked_out.send_replace(true);
                } else {
                    assert_refused(&refused);
                }
            });
            // Limits the number of unanswered guesses, so that a slow machine is not overloaded.
            while guesses.len() >= 64 && !*is_locked_out.borrow_and_update() {
                tokio::select! {
                    Some(guess) = guesses.join_next() => guess.unwrap(),
                    _ = is_locked_out.changed() => {}
                }
            }
        }
    };
    timeout(Duration::from_secs(120), guessing)
        .await
        .expect("no guess was refused in time");
    assert_eq!(open(&served, &url).await.status, 200);
}

/// Collects the texts and values of all events and spans.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<String>>);

impl Visit for Lines {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.lock().unwrap().push_str(&format!("{field}={value:?} "));
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        event.record(&mut self.clone());
    }

    fn on_new_span(&self, span: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        span.record(&mut self.clone());
    }

    fn on_record(&self, _: &Id, values: &Record<'_>, _: Context<'_, S>) {
        values.record(&mut self.clone());
    }
}

#[tokio::test]
async fn no_log_line_has_the_link() {
    let lines = Lines::default();
    let _logging = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
    let served = Served::start().await;
    let kernel = kernel(&served).await;
    let made = share(&served, &kernel, json!({})).await;
    let token = made["token"].as_str().unwrap();
    assert_eq!(open(&served, made["url"].as_str().unwrap()).await.status, 200);
    assert_refused(&open(&served, &format!("/live/{token}0")).await);
    let mut events = Events::open(&served, made["url"].as_str().unwrap()).await;
    events.until("event: cell").await;
    // The line of a request is written after its answer.
    let logged = async {
        while !lines.0.lock().unwrap().contains("/live/…") {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(60), logged)
        .await
        .expect("the request was not logged in time");
    let lines = lines.0.lock().unwrap();
    assert!(!lines.contains(token), "{lines}");
}
