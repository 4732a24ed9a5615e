//! The canary: a beat that comes back, and one that does not.

use tokio::time::timeout;

use crate::harness::{DEADLINE, Database, Relay};

#[tokio::test]
async fn what_does_not_arrive_is_seen_though_all_else_looks_well() {
    let database = Database::create().await;
    let role = format!("relay_{}", uuid::Uuid::new_v4().simple());
    database
        .execute(&format!("create role {role} login in role crm_relay_serve"))
        .await;
    let url = database.url().replace("//postgres@", &format!("//{role}@"));
    // nobody's token shows the relay its own row
    let relay = Relay::guarded(&url, |command| {
        command.envs([("RELAY_THROTTLE", "0"), ("RELAY_CANARY", "1s")]);
    })
    .await;
    relay.logged("the canary was heard beat=3").await;
    assert_eq!(relay.get("/readyz", "").await.0, 200);

    // as if something between trigger and journal had failed
    let trigger = "alter table crm_relay.canary disable trigger \"!crm_relay\"";
    database.execute(trigger).await;
    relay.logged("the canary was not heard").await;
    let (status, told) = relay.get("/readyz", "").await;
    assert_eq!(status, 503);
    assert!(told.contains("did not arrive within 10 s"), "{told}");

    database
        .execute(&trigger.replace("disable", "enable"))
        .await;
    let heard = relay.logs().matches("the canary was heard").count();
    let again = async {
        while relay.logs().matches("the canary was heard").count() == heard {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, again).await.expect("it is heard again");
    relay.ready().await;
    drop(relay);
    database
        .execute(&format!("drop owned by {role}; drop role {role}"))
        .await;
}
