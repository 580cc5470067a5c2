//! `GET /api/spec.yaml` and `GET /api/swagger.json`: the API description in Swagger 2.0.

use std::fmt::Write;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::Gateway;
use crate::error::ApiError;

const DESCRIPTION: &str = include_str!("description.json");

/// The description with this gateway's version and base URL.
fn description(gateway: &Gateway) -> Result<Value, ApiError> {
    let mut description: Value = serde_json::from_str(DESCRIPTION).map_err(|error| {
        ApiError::new(
            axum::http::StatusCode::INTERNAL_SERVER_ERROR,
            format!("the description is damaged: {error}"),
        )
    })?;
    description["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    description["basePath"] = gateway.options.base_url.to_string().into();
    Ok(description)
}

pub(super) async fn json(State(gateway): State<Arc<Gateway>>) -> Result<Json<Value>, ApiError> {
    description(&gateway).map(Json)
}

pub(super) async fn yaml(State(gateway): State<Arc<Gateway>>) -> Result<Response, ApiError> {
    let mut text = String::new();
    write_yaml(&mut text, &description(&gateway)?, 0);
    Ok(([(header::CONTENT_TYPE, "application/yaml")], text).into_response())
}

/// Writes a value as YAML in block style. Strings are written as in JSON, which YAML accepts.
fn write_yaml(text: &mut String, value: &Value, depth: usize) {
    let pad = "  ".repeat(depth);
    // Writing to a string cannot fail.
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                let is_plain = name.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_');
                let name = if is_plain {
                    name.clone()
                } else {
                    Value::from(name.as_str()).to_string()
                };
                let _ = write!(text, "{pad}{name}:");
                write_inner(text, field, depth);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let _ = write!(text, "{pad}-");
                write_inner(text, item, depth);
            }
        }
        scalar => {
            let _ = writeln!(text, "{pad}{scalar}");
        }
    }
}

/// Writes the value after `name:` or `-`, on the same line if it is scalar.
fn write_inner(text: &mut String, value: &Value, depth: usize) {
    let is_block = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if is_block {
        text.push('\n');
        write_yaml(text, value, depth + 1);
    } else {
        let _ = writeln!(text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_is_nested_by_indentation() {
        let mut text = String::new();
        let value = json!({
            "a": 1, "b c": [true, {"d": "e: f\n", "g": []}], "401": {}, "h": {"i": null},
        });
        write_yaml(&mut text, &value, 0);
        let expected = [
            "a: 1",
            "\"b c\":",
            "  - true",
            "  -",
            "    d: \"e: f\\n\"",
            "    g: []",
            "\"401\": {}",
            "h:",
            "  i: null",
            "",
        ];
        assert_eq!(text, expected.join("\n"));
    }

    #[test]
    fn every_reference_of_the_description_leads_somewhere() {
        fn check(root: &Value, value: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                        let pointer = reference.strip_prefix('#').unwrap();
                        assert!(root.pointer(pointer).is_some(), "{reference}");
                    }
                    fields.values().for_each(|field| check(root, field));
                }
                Value::Array(items) => items.iter().for_each(|item| check(root, item)),
                _ => {}
            }
        }
        let description: Value = serde_json::from_str(DESCRIPTION).unwrap();
        check(&description, &description);
    }
}
