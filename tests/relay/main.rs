//! The relay as its users meet it: the real binary, a real Postgres, real sockets.

mod access;
mod changes;
mod chaos;
mod commands;
mod contract;
mod demo;
mod documents;
mod edge;
mod faults;
mod harness;
mod histories;
mod leak;
mod order;
mod protocol;
mod proxy;
mod resume;
mod reverse_proxy;
mod shown;
mod signals;
mod sizing;
mod slow;
mod soak;
