//! Runs many simulations, as many at a time as there are cores: each on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// What came of each item, in their order. A panic is an error that carries its message.
///
/// `done` hears of each as it ends.
pub fn run<I: Sync, O: Send>(
    items: &[I],
    work: impl Fn(&I) -> anyhow::Result<O> + Sync,
    done: impl Fn(&I, &anyhow::Result<O>) + Sync,
) -> Vec<anyhow::Result<O>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<anyhow::Result<O>>>> =
        Mutex::new(std::iter::repeat_with(|| None).take(items.len()).collect());
    std::thread::scope(|scope| {
        for _ in 0..cores.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { return };
                    let result = catch_unwind(AssertUnwindSafe(|| work(item)));
                    let result = result.unwrap_or_else(|panic| Err(message(&*panic)));
                    done(item, &result);
                    results.lock()[at] = Some(result);
                }
            });
        }
    });
    results.into_inner().into_iter().map(|r| r.expect("every item was worked on")).collect()
}

fn message(panic: &(dyn std::any::Any + Send)) -> anyhow::Error {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    anyhow::anyhow!("panic: {}", text.unwrap_or_default())
}
