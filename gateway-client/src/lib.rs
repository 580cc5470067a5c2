#![doc = include_str!("../README.md")]
//! [`resume`] contains the resume protocol and its client, which follows a kernel's log across disconnects.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod resume;
