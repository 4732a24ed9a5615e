//! LISTEN, as the bare loops and the bridges have it.

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, NoTls};

/// The rows of the changes that are committed from now on.
pub async fn listen(url: &str) -> mpsc::UnboundedReceiver<String> {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("a session in Postgres");
    let (tell, told) = mpsc::unbounded_channel();
    let mut messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
    tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(note) = message
                && tell.send(note.payload().to_owned()).is_err()
            {
                return;
            }
        }
    });
    client
        .batch_execute("listen listings")
        .await
        .expect("listen");
    // the session ends with its client
    tokio::spawn(async move {
        let _stays = client;
        std::future::pending::<()>().await;
    });
    told
}
