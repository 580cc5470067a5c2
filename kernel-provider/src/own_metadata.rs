use jupyter_protocol::Kernelspec;
use serde_json::Value;

/// The value called `name` in a kernelspec's `metadata.kernelmux`, which only this project reads; `None` if it is
/// missing.
#[must_use]
pub fn own_metadata<'a>(spec: &'a Kernelspec, name: &str) -> Option<&'a Value> {
    spec.metadata.get("kernelmux")?.get(name)
}
