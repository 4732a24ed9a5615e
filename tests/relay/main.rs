//! The relay as its users meet it: the real binary, a real Postgres, real sockets.

mod access;
mod audit;
mod changes;
mod chaos;
mod commands;
mod demo;
mod documents;
mod doorbell;
mod edge;
mod explain;
mod faults;
mod harness;
mod histories;
mod leak;
mod metrics;
mod order;
mod protocol;
mod proxy;
mod resume;
mod shell;
mod signals;
mod slow;
mod soak;
mod tail;
