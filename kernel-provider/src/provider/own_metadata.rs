use jupyter_protocol::Kernelspec;
use serde_json::Value;

/// What a kernelspec says under this name in `metadata.kernelmux`, where it says for its provider what no other server
/// reads; `None` where it says nothing.
#[must_use]
pub fn own_metadata<'a>(spec: &'a Kernelspec, name: &str) -> Option<&'a Value> {
    spec.metadata.get("kernelmux")?.get(name)
}
