//! Who may do what: each route, with each role, for kernels of each kind of owner.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;

use common::users::{Team, USERS};
use common::{Answer, UNKNOWN};
use serde_json::{Value, json};

/// What a route needs, and the status of a response to a caller who may use it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Needs {
    /// Any role.
    Ask,
    Measure,
    Start,
    See,
    Control,
    Read,
    Run,
    Manage,
}

/// All protected routes. `{id}` is a kernel, or under `/api/sessions` a session.
const ROUTES: &[(&str, &str, Needs, u16)] = &[
    ("GET", "/api", Needs::Ask, 200),
    ("GET", "/api/status", Needs::Ask, 200),
    ("GET", "/api/me", Needs::Ask, 200),
    ("GET", "/api/spec.yaml", Needs::Ask, 200),
    ("GET", "/api/swagger.json", Needs::Ask, 200),
    ("GET", "/api/swagger.yaml", Needs::Ask, 200),
    ("GET", "/metrics", Needs::Measure, 200),
    ("GET", "/api/kernelspecs", Needs::Ask, 200),
    ("GET", "/api/kernelspecs/{name}", Needs::Ask, 200),
    ("GET", "/kernelspecs/{name}/{path}", Needs::Ask, 200),
    ("GET", "/api/kernels", Needs::Ask, 200),
    ("POST", "/api/kernels", Needs::Start, 201),
    ("GET", "/api/kernels/{id}", Needs::See, 200),
    ("DELETE", "/api/kernels/{id}", Needs::Control, 204),
    ("POST", "/api/kernels/{id}/interrupt", Needs::Control, 204),
    ("POST", "/api/kernels/{id}/restart", Needs::Control, 200),
    ("GET", "/api/kernels/{id}/progress", Needs::See, 200),
    // Without a WebSocket handshake.
    ("GET", "/api/kernels/{id}/channels", Needs::Run, 400),
    ("GET", "/api/kernels/{id}/log", Needs::Read, 200),
    ("GET", "/api/kernels/{id}/comms", Needs::Read, 200),
    ("GET", "/api/kernels/{id}/executions", Needs::Read, 200),
    ("POST", "/api/kernels/{id}/executions", Needs::Run, 202),
    ("GET", "/api/kernels/{id}/executions/{msg_id}", Needs::Read, 200),
    ("GET", "/api/kernels/{id}/shares", Needs::Manage, 200),
    ("POST", "/api/kernels/{id}/shares", Needs::Manage, 201),
    ("DELETE", "/api/kernels/{id}/shares/{share}", Needs::Manage, 204),
    ("GET", "/api/logs", Needs::Ask, 200),
    // The kernel runs.
    ("DELETE", "/api/logs/{id}", Needs::Manage, 409),
    ("GET", "/api/sessions", Needs::Ask, 200),
    ("POST", "/api/sessions", Needs::Start, 201),
    ("GET", "/api/sessions/{id}", Needs::See, 200),
    ("PATCH", "/api/sessions/{id}", Needs::Run, 200),
    ("DELETE", "/api/sessions/{id}", Needs::Control, 204),
];
/// Routes that need no token.
const OPEN: [&str; 3] = ["/healthz", "/live/{token}", "/live/{token}/events"];

/// The kernel of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kernel {
    Own,
    SharedWithUser,
    SharedWithGroup,
    SharedWithOthers,
    Others,
    OthersWithoutOwner,
    /// The same after the kernel's end.
    PastOwn,
    PastShared,
    PastOthers,
}

const KERNELS: [Kernel; 9] = [
    Kernel::Own,
    Kernel::SharedWithUser,
    Kernel::SharedWithGroup,
    Kernel::SharedWithOthers,
    Kernel::Others,
    Kernel::OthersWithoutOwner,
    Kernel::PastOwn,
    Kernel::PastShared,
    Kernel::PastOthers,
];

impl Kernel {
    fn is_past(self) -> bool {
        matches!(self, Self::PastOwn | Self::PastShared | Self::PastOthers)
    }
}

/// The roles' rights as the book describes them (`docs/src/users.md`).
fn may(role: &str, kernel: Kernel, needs: Needs) -> bool {
    let is_own = matches!(kernel, Kernel::Own | Kernel::PastOwn);
    let is_shared = matches!(
        kernel,
        Kernel::SharedWithUser | Kernel::SharedWithGroup | Kernel::PastShared
    );
    let reads = matches!(needs, Needs::See | Needs::Read);
    match (role, needs) {
        (_, Needs::Ask) | ("shared" | "admin" | "server", _) => true,
        ("operator", Needs::Measure | Needs::See | Needs::Control) => true,
        ("user", Needs::Start) => true,
        ("user", _) if is_own => needs != Needs::Measure,
        _ => reads && (is_own || is_shared),
    }
}

fn path_of(route: &str, id: &str, share: &str) -> String {
    let path = route
        .replace("{id}", id)
        .replace("{share}", share)
        .replace("{msg_id}", "m1")
        .replace("{name}", "echo")
        .replace("{path}", "logo-svg.svg");
    if path.ends_with("/log") {
        format!("{path}?follow=false")
    } else {
        path
    }
}

fn body_of(method: &str, route: &str, path: &str) -> Value {
    match (method, route) {
        ("POST", "/api/kernels/{id}/executions") => json!({"code": "x"}),
        ("POST", "/api/kernels/{id}/shares") => json!({"users": ["eve"]}),
        ("POST", "/api/sessions") => json!({"path": path, "type": "notebook"}),
        ("PATCH", _) => json!({"name": "renamed"}),
        ("POST", _) => json!({}),
        _ => Value::Null,
    }
}

/// A kernel with an execution, a share and a session, for one caller.
struct Subject {
    kernel: String,
    share: String,
    session: String,
}

impl Subject {
    async fn new(team: &Team, caller: &str, kind: Kernel) -> Self {
        let owner = match kind {
            Kernel::Own | Kernel::PastOwn => caller,
            // The shared token is no user, so its kernels without a name belong to the gateway's own user.
            Kernel::OthersWithoutOwner => "host",
            _ => "peer",
        };
        let kernel = team.start_kernel(owner).await;
        let run = json!({"code": "x", "msg_id": "m1"});
        let ran = team
            .send("shared", "POST", &format!("/api/kernels/{kernel}/executions"), run)
            .await;
        assert_eq!(ran.status, 202, "{ran:?}");
        let body = json!({"path": kernel, "type": "notebook", "kernel": {"id": kernel}});
        let session = team.send("shared", "POST", "/api/sessions", body).await.json();
        let readers = match kind {
            Kernel::SharedWithUser => json!({"users": ["eve", caller]}),
            Kernel::SharedWithGroup | Kernel::PastShared => json!({"groups": ["staff"]}),
            Kernel::SharedWithOthers => json!({"users": ["eve"], "groups": [caller]}),
            _ => json!({}),
        };
        let share = team.share(&kernel, readers).await;
        if kind.is_past() {
            assert_eq!(
                team.send("shared", "DELETE", &format!("/api/kernels/{kernel}"), Value::Null)
                    .await
                    .status,
                204
            );
        }
        Self {
            kernel,
            share,
            session: session["id"].as_str().unwrap().to_owned(),
        }
    }
}

/// The answer's status and text, with a fixed id.
fn comparable(answer: &Answer, id: &str) -> (u16, String) {
    (answer.status, String::from_utf8_lossy(&answer.body).replace(id, "ID"))
}

#[tokio::test]
async fn the_table_of_this_test_has_all_routes() {
    let team = Team::start().await;
    let api = team.get("viewer", "/api/swagger.json").await.json();
    let mut described = BTreeSet::new();
    for (path, operations) in api["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            if !OPEN.contains(&path.as_str()) {
                described.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    let table: BTreeSet<String> = ROUTES
        .iter()
        .map(|(method, path, ..)| format!("{method} {path}"))
        .collect();
    assert_eq!(table, described);
}

#[tokio::test]
async fn every_route_answers_each_role_as_documented() {
    let team = Team::start().await;
    let mut rows = 0;
    for (caller, ..) in
        USERS
            .into_iter()
            .filter(|(name, ..)| *name != "peer")
            .chain([("shared", Default::default(), &[][..])])
    {
        for kind in KERNELS {
            let mut subject = Subject::new(&team, caller, kind).await;
            for (method, route, needs, success) in ROUTES {
                let of_session = route.starts_with("/api/sessions/");
                let of_kernel = route.contains("{id}") && !of_session;
                if !of_session && !of_kernel && kind != Kernel::Own {
                    continue;
                }
                let id = if of_session { &subject.session } else { &subject.kernel };
                let path = path_of(route, id, &subject.share);
                let body = body_of(method, route, &format!("{caller} {rows}"));
                let answer = team.send(caller, method, &path, body.clone()).await;
                rows += 1;
                let row = format!("{caller} {method} {route} {kind:?}: {answer:?}");
                let unknown = path_of(route, UNKNOWN, &subject.share);
                let unknown = team.send(caller, method, &unknown, body).await;
                if !may(caller, kind, *needs) {
                    if of_session || of_kernel {
                        answer.error(404);
                        assert_eq!(comparable(&answer, id), comparable(&unknown, UNKNOWN), "{row}");
                    } else {
                        answer.error(403);
                    }
                    continue;
                }
                match (kind.is_past(), needs) {
                    (false, _) => assert_eq!(answer.status, *success, "{row}"),
                    (true, Needs::Read) if *route != "/api/kernels/{id}/comms" => {
                        assert_eq!(answer.status, 200, "{row}")
                    }
                    (true, _) if route.ends_with("/progress") => assert_eq!(answer.status, 200, "{row}"),
                    (true, _) if route.starts_with("/api/logs/") => assert_eq!(answer.status, 204, "{row}"),
                    // The kernel does not run, which its owner may know.
                    (true, _) => assert_ne!(answer.status, 403, "{row}"),
                }
                let is_gone = matches!(*method, "DELETE") || *route == "/api/kernels/{id}/restart";
                if is_gone {
                    subject = Subject::new(&team, caller, kind).await;
                }
            }
        }
    }
    println!("{rows} rows");
    assert!(rows >= 400, "{rows} rows");
}
