//! SIGHUP and `watch`: a valid file takes effect, an invalid one changes nothing, and no request is
//! lost (CONTRACT §1, §2 rule 1).

use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::gateway::{complete, is_reload};
use crate::harness::upstream::write;
use crate::harness::{Gateway, Step, Upstream, mint};

const ONE: &str = "route = [{ path = '/one', upstream = 'app', access = 'public' }]";
const TWO: &str = "route = [{ path = '/two', upstream = 'app', access = 'public' }]";

#[tokio::test]
async fn new_routes_are_served_after_sighup() {
    let gateway = Gateway::start(ONE).await;
    gateway.get("/two").send().await.is(404, "route_not_found");
    assert_eq!(gateway.reload(TWO).await["message"], "reloaded");
    assert_eq!(gateway.get("/two").send().await.status, 200);
    gateway.get("/one").send().await.is(404, "route_not_found");
    assert_eq!(
        gateway.metric_value("portcullis_config_reloads_total", &["succeeded"]).await,
        Some(1.0)
    );
    assert_eq!(gateway.metric_value("portcullis_config_last_reload_success", &[]).await, Some(1.0));
    let stamp =
        gateway.metric_value("portcullis_config_last_reload_timestamp_seconds", &[]).await.unwrap();
    assert!((stamp - mint::now() as f64).abs() < 60.0, "{stamp}");
}

#[tokio::test]
async fn an_invalid_file_changes_nothing_and_is_reported() {
    let gateway = Gateway::start(ONE).await;
    for wrong in [
        "route = [{ path = '/two', upstream = 'nowhere', access = 'public' }]",
        "route = [{ path = '/two', upstream = 'app', acess = 'public' }]",
        "route = [{ path = '/two', upstream = 'app', access = 'public' }]\ntest = [{ request = 'GET /two', expect = { status = 401 } }]",
    ] {
        let output = gateway.reload(wrong).await;
        assert_eq!(output["level"], "error", "{output}");
        assert!(output["problems"].to_string().len() > 10, "{output}");
        assert_eq!(gateway.get("/one").send().await.status, 200);
        gateway.get("/two").send().await.is(404, "route_not_found");
    }
    std::fs::write(gateway.path("gateway.toml"), "no [ toml").unwrap();
    assert_eq!(gateway.hang_up().await["level"], "error");
    std::fs::remove_file(gateway.path("gateway.toml")).unwrap();
    assert_eq!(gateway.hang_up().await["level"], "error");
    assert_eq!(gateway.get("/one").send().await.status, 200);
    assert_eq!(gateway.metric_value("portcullis_config_last_reload_success", &[]).await, Some(0.0));
    let rejected: f64 = gateway
        .metric("portcullis_config_reloads_total")
        .await
        .iter()
        .filter(|line| !line.contains("succeeded"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert!((rejected - 5.0).abs() < 0.1, "{rejected}");
    assert_eq!(gateway.admin("/readyz").await.status, 200);
    // A corrected file is loaded.
    assert_eq!(gateway.reload(TWO).await["message"], "reloaded");
    assert_eq!(gateway.metric_value("portcullis_config_last_reload_success", &[]).await, Some(1.0));
}

#[tokio::test]
async fn a_request_in_flight_finishes_under_its_original_configuration() {
    let gateway = Gateway::start(
        "route = [{ name = 'before', path = '/*', upstream = 'app', access = 'public' }]",
    )
    .await;
    gateway.upstream().does(vec![
        Step::ReadBody,
        Step::Hold,
        write("HTTP/1.1 200 OK\r\nSet-Cookie: sess=1\r\nContent-Length: 4\r\n\r\nlate"),
    ]);
    let mut connection = gateway.connect().await;
    connection.write("GET /a HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    gateway.upstream().until(|seen| seen.requests.len() == 1).await;
    gateway.reload("server = { token_cookie = 'sess' }\nroute = [{ name = 'after', path = '/*', upstream = 'app' }]").await;
    gateway.get("/b").send().await.is(401, "credentials_missing");
    gateway.upstream().release();
    let response = connection.response().await;
    assert_eq!(
        (response.status, response.text().as_str(), response.header("set-cookie")),
        (200, "late", Some("sess=1"))
    );
    assert_eq!(gateway.access("/a").await["http.route"], "before");
    // The next request on the same connection uses the new file.
    connection.write("GET /c HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    connection.response().await.is(401, "credentials_missing");
}

#[tokio::test]
async fn an_unchanged_upstream_keeps_its_connections() {
    let gateway = Gateway::start(ONE).await;
    assert_eq!(gateway.get("/one").send().await.status, 200);
    gateway.reload(TWO).await;
    assert_eq!(gateway.get("/two").send().await.status, 200);
    assert_eq!(gateway.upstream().seen().accepted, 1);
    gateway.reload(&format!("{TWO}\nupstream.app.idle_timeout = '4m'")).await;
    assert_eq!(gateway.get("/two").send().await.status, 200);
    assert_eq!(gateway.upstream().seen().accepted, 2);
}

#[tokio::test]
async fn settings_read_at_start_cannot_be_reloaded() {
    let gateway = Gateway::start(ONE).await;
    for changed in
        ["server.listen = '127.0.0.1:1'", "server.workers = 2", "admin.listen = '127.0.0.1:1'"]
    {
        let output = gateway.reload(&format!("{changed}\n{TWO}")).await;
        assert_eq!(output["level"], "error", "{output}");
        let key = changed.split([' ', '.']).nth(1).unwrap();
        assert!(output["problems"].to_string().contains(key), "{output}");
        assert_eq!(gateway.get("/one").send().await.status, 200);
    }
}

#[tokio::test]
async fn a_reload_reads_keys_again() {
    let config = "route = [{ path = '/*', upstream = 'app' }]";
    let gateway = Gateway::start(config).await;
    let (old, new) = (
        mint::token(&[]),
        mint::secret(jsonwebtoken::Algorithm::HS256, b"the next secret, which is long enough too")
            .token(serde_json::json!({}), serde_json::json!({})),
    );
    assert_eq!(gateway.get("/").bearer(&old).send().await.status, 200);
    gateway.get("/").bearer(&new).send().await.is(401, "token_signature");
    std::fs::write(gateway.path("corp.secret"), "the next secret, which is long enough too")
        .unwrap();
    gateway.hang_up().await;
    assert_eq!(gateway.get("/").bearer(&new).send().await.status, 200);
    gateway.get("/").bearer(&old).send().await.is(401, "token_signature");
}

#[tokio::test]
async fn a_watched_file_is_reloaded_when_it_changes() {
    let gateway = Gateway::start(&format!("server.watch = true\n{ONE}")).await;
    let mark = gateway.log().mark();
    gateway.write(&format!("server.watch = true\n{TWO}"));
    assert_eq!(
        gateway.log().after(mark, "the watched file is loaded", is_reload).await["message"],
        "reloaded"
    );
    assert_eq!(gateway.get("/two").send().await.status, 200);
    // Files that the configuration names are watched too.
    let mark = gateway.log().mark();
    std::fs::write(gateway.path("corp.secret"), "the next secret, which is long enough too")
        .unwrap();
    assert_eq!(
        gateway.log().after(mark, "the watched secret is loaded", is_reload).await["message"],
        "reloaded"
    );
    // An invalid file is reported once, not at every check.
    let mark = gateway.log().mark();
    std::fs::write(gateway.path("gateway.toml"), "no [ toml").unwrap();
    assert_eq!(
        gateway.log().after(mark, "the invalid file is reported", is_reload).await["level"],
        "error"
    );
    let mark = gateway.log().mark();
    gateway.write(&format!("server.watch = true\n{ONE}"));
    gateway
        .log()
        .after(mark, "the mended file is loaded", |line| line["message"] == "reloaded")
        .await;
    let output = gateway.log().lines().iter().skip(mark).filter(|line| is_reload(line)).count();
    assert!(output <= 2, "the wrong file was reported {output} times");
}

#[tokio::test]
async fn a_swapped_config_map_is_reloaded() {
    let upstream = Upstream::start().await;
    let setup = Gateway::setup("").upstream(upstream.clone());
    let folder = setup.path().to_owned();
    let version = |name: &str, config: &str| {
        std::fs::create_dir(folder.join(name)).unwrap();
        std::fs::write(
            folder.join(name).join("gateway.toml"),
            complete(&format!("server.watch = true\n{config}"), &upstream),
        )
        .unwrap();
    };
    version("..1", ONE);
    symlink("..1", folder.join("..data")).unwrap();
    symlink("..data/gateway.toml", folder.join("gateway.toml")).unwrap();
    let gateway = setup.start().await;
    assert_eq!(gateway.get("/one").send().await.status, 200);
    let mark = gateway.log().mark();
    version("..2", TWO);
    symlink("..2", folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    std::fs::remove_dir_all(folder.join("..1")).unwrap();
    gateway.log().after(mark, "the swapped file is loaded", is_reload).await;
    assert_eq!(gateway.get("/two").send().await.status, 200);
}

/// An issuer whose key file is a pipe: reading the configuration blocks there until
/// [`change_meanwhile`] has changed the file.
const SLOW: &str = "server.watch = true\n[[route]]\npath = '/one'\nupstream = 'app'\naccess = 'public'\n\
                    [issuer.slow]\nissuer = 'slow'\naudience = ['x']\nalgorithms = ['ES256']\npublic_keys = ['pipe.pem']";

/// Once the configuration has been read, replaces it with `next`, and lets the reader continue.
fn change_meanwhile(folder: &Path, next: String) {
    let (folder, pipe) = (folder.to_owned(), folder.join("pipe.pem"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::thread::spawn(move || {
        // Opening a pipe waits for the reader.
        let mut pipe = std::fs::File::options().write(true).open(pipe).unwrap();
        std::fs::write(folder.join("next"), next).unwrap();
        std::fs::rename(folder.join("next"), folder.join("gateway.toml")).unwrap();
        pipe.write_all(mint::keys().p256.public.as_bytes()).unwrap();
    });
}

#[tokio::test]
async fn a_change_during_the_start_is_not_lost() {
    let upstream = Upstream::start().await;
    let setup = Gateway::setup(SLOW).upstream(upstream.clone());
    change_meanwhile(setup.path(), complete(&format!("server.watch = true\n{TWO}"), &upstream));
    let gateway = setup.start().await;
    gateway.log().until("the changed file is loaded", is_reload).await;
    assert_eq!(gateway.get("/two").send().await.status, 200);
}

#[tokio::test]
async fn a_change_during_a_reload_is_not_lost() {
    let gateway = Gateway::start(&format!("server.watch = true\n{TWO}")).await;
    change_meanwhile(
        gateway.path("gateway.toml").parent().unwrap(),
        complete(&format!("server.watch = true\n{TWO}"), gateway.upstream()),
    );
    assert_eq!(gateway.reload(SLOW).await["message"], "reloaded");
    let mark = gateway.log().mark();
    gateway.log().after(mark, "the changed file is loaded", is_reload).await;
    assert_eq!(gateway.get("/two").send().await.status, 200);
}

/// `PORTCULLIS_TEST_RELOAD_SECONDS=30` for the long variant.
#[tokio::test]
async fn a_reload_under_load_loses_no_request() {
    let seconds = std::env::var("PORTCULLIS_TEST_RELOAD_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(3);
    let (even, odd) = (
        "route = [{ name = 'even', path = '/*', upstream = 'app' }]",
        "route = [{ name = 'odd', path = '/*', upstream = 'app' }]\nupstream.app.idle_timeout = '4m'",
    );
    let gateway = Gateway::start(&format!("server.workers = 2\n{even}")).await;
    let done = Arc::new(AtomicBool::new(false));
    let token = mint::token(&[]);
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let (done, address) = (Arc::clone(&done), gateway.address());
            let request = gateway.request("POST", "/").bearer(&token).body("x").bytes();
            tokio::spawn(async move {
                let mut answered = 0;
                let mut connection = crate::harness::Connection::open(address).await;
                while !done.load(Ordering::Relaxed) {
                    if client % 2 == 0 {
                        connection = crate::harness::Connection::open(address).await;
                    }
                    connection.write(&request).await;
                    let response = connection.response().await;
                    assert_eq!(
                        (response.status, response.text().as_str()),
                        (200, "ok"),
                        "{response:?}"
                    );
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    let (begun, mut reloads) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let next = tokio::time::Instant::now() + Duration::from_millis(100);
        reloads += 1;
        let output = gateway
            .reload(&format!("server.workers = 2\n{}", if reloads % 2 == 0 { even } else { odd }))
            .await;
        assert_eq!(output["message"], "reloaded");
        tokio::time::sleep_until(next).await;
    }
    done.store(true, Ordering::Relaxed);
    let mut answered = 0;
    for client in clients {
        answered += client.await.unwrap();
    }
    assert!(answered > 100 && reloads > 5, "{answered} requests, {reloads} reloads");
    assert_eq!(gateway.upstream().count(), answered, "every request arrived once");
}
