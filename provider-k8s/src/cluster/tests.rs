use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Method, Request, Response};
use kube::client::Body;

use super::deletion::LATE_CALL_WINDOW;
use super::*;

const MARK: (&str, &str) = (names::ATTEMPT, "mine");

fn pod(attempt: &str) -> Value {
    json!({"metadata": {"name": "kernel-1", "annotations": {names::ATTEMPT: attempt}}})
}

/// An API server that gives these answers in turn, and the methods of the requests that it received.
fn answering(answers: Vec<(u16, Value)>) -> (Api<Pod>, Arc<Mutex<Vec<Method>>>) {
    let methods = Arc::new(Mutex::new(Vec::new()));
    let next = Arc::new(AtomicUsize::new(0));
    let service = tower::service_fn({
        let methods = Arc::clone(&methods);
        move |request: Request<Body>| {
            crate::lock(&methods).push(request.method().clone());
            let (status, body) = answers[next.fetch_add(1, Ordering::Relaxed)].clone();
            let body = Body::from(serde_json::to_vec(&body).unwrap());
            let response = Response::builder().status(status).body(body);
            async move { Ok::<_, tower::BoxError>(response.unwrap()) }
        }
    });
    (Api::namespaced(Client::new(service, "test"), "test"), methods)
}

fn conflict(reason: &str) -> (u16, Value) {
    (
        409,
        json!({"status": "Failure", "reason": reason, "message": reason, "code": 409}),
    )
}

async fn create(answers: Vec<(u16, Value)>) -> (Result<Pod, CallError>, Vec<Method>) {
    let (pods, methods) = answering(answers);
    let wanted = serde_json::from_value(pod(MARK.1)).unwrap();
    let made = Cluster::create(&pods, &wanted, &(MARK.0, MARK.1.to_owned())).await;
    let methods = crate::lock(&methods).clone();
    (made, methods)
}

#[tokio::test(start_paused = true)]
async fn a_retried_create_recognizes_its_own_pod_by_its_mark() {
    let (made, methods) = create(vec![conflict("AlreadyExists"), (200, pod("mine"))]).await;
    made.unwrap();
    assert_eq!(methods, [Method::POST, Method::GET]);
    let (made, _) = create(vec![conflict("AlreadyExists"), (200, pod("another's"))]).await;
    assert!(made.unwrap_err().already_exists());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_appears_after_its_launch_was_cancelled_is_removed() {
    let id = KernelId::random();
    let late = |attempt: &str| {
        let mut pod = pod(attempt);
        pod["metadata"]["uid"] = attempt.into();
        pod["metadata"]["labels"] = json!({ names::KERNEL_ID: id });
        pod
    };
    let seen = |attempt: &str| serde_json::from_value(late(attempt)).unwrap();
    let (pods, methods) = answering(vec![(200, late("mine")), (200, late("mine"))]);
    let pod_cache = Arc::new(PodCache::default());
    let cluster = Cluster {
        options: K8sOptions::new("test"),
        secrets: Api::namespaced(pods.clone().into_client(), "test"),
        pods,
        pod_cache: pod_cache.clone(),
        forwards: false,
        cleanup: TaskTracker::new(),
        stop_late_cleanup: CancellationToken::new(),
        _watches: Vec::new(),
    };
    let mark = (MARK.0, MARK.1.to_owned());
    let cluster_does = async {
        // A pod of the same name with another mark is not removed.
        pod_cache.upsert(seen("another's"));
        tokio::time::sleep(LATE_CALL_WINDOW / 2).await;
        assert!(crate::lock(&methods).is_empty());
        pod_cache.remove(seen("another's"));
        pod_cache.upsert(seen("mine"));
        while crate::lock(&methods).len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        pod_cache.remove(seen("mine"));
    };
    tokio::join!(cluster.clean_up_late(id, "kernel-1", &mark), cluster_does);
    assert_eq!(*crate::lock(&methods), [Method::GET, Method::DELETE]);
}

#[tokio::test(start_paused = true)]
async fn a_create_that_conflicts_with_a_quota_update_is_retried() {
    let (made, methods) = create(vec![conflict("Conflict"), conflict("Conflict"), (201, pod("mine"))]).await;
    made.unwrap();
    assert_eq!(methods.len(), 3);
    let (made, methods) = create(vec![conflict("Conflict"); 99]).await;
    assert!(made.unwrap_err().is_conflict() && methods.len() < 10);
}
