//! A node as its clients and peers see it, in process and over QUIC, and what it does by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

mod background;
mod replicas;
mod rotation;
mod service;
