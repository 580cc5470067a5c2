//! The groups of a kernel, as an annotation of its record.

use std::collections::BTreeMap;

use kernel_provider::KernelRecord;

/// The annotation, a JSON list of names.
const GROUPS: &str = "groups";

/// Adds the groups to the annotations of a launch.
pub(crate) fn annotate(groups: &[String], annotations: &mut BTreeMap<String, String>) {
    if !groups.is_empty() {
        annotations.insert(GROUPS.to_owned(), serde_json::Value::from(groups).to_string());
    }
}

/// The groups in a kernel's record.
pub(crate) fn of_record(record: &KernelRecord) -> Vec<String> {
    let groups = record.annotations.get(GROUPS);
    groups
        .and_then(|groups| serde_json::from_str(groups).ok())
        .unwrap_or_default()
}
