//! The demo (stub while it is being built).
use crate::postgres::Session;
use std::sync::Arc;
/// stub
pub async fn load(_: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
    Ok(())
}
/// stub
pub async fn unload(_: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
    Ok(())
}
/// stub
pub fn routes(_: Arc<Session>) -> crate::server::Routes {
    use warp::{Filter, Reply};
    warp::any().map(|| "x".into_response()).boxed()
}
