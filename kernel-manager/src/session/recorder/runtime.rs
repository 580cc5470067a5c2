use std::future::poll_fn;
use std::pin::pin;

use tokio::runtime::Handle;

/// Runs a future in the calling task, but in the context of `runtime`: sockets that it opens and tasks that it spawns
/// belong to that runtime.
pub(super) async fn in_runtime<F: Future>(runtime: &Handle, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        let _entered = runtime.enter();
        future.as_mut().poll(context)
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn spawned_tasks_run_on_the_given_runtime() {
        let there = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("there")
            .build()
            .unwrap();
        let here = Builder::new_current_thread().build().unwrap();
        let name = here.block_on(in_runtime(there.handle(), async {
            tokio::spawn(async { std::thread::current().name().map(str::to_owned) }).await
        }));
        assert_eq!(name.unwrap().as_deref(), Some("there"));
    }
}
