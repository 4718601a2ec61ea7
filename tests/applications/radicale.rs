//! Radicale, with the files of `docs/guides/radicale.md`, and the `caldav` library as its client.

use std::process::Command;

use crate::harness::{Gateway, Port};
use crate::{
    EMAIL, accepts, add_account, behind, fence, is_installed, peers, portcullis, run, start, token,
};

/// Makes a calendar and an event, and reads the event.
const CLIENT: &str = r#"
import sys, caldav
url, token = sys.argv[1:]
with caldav.DAVClient(url, username="anyone", password=token) as client:
    calendar = client.principal().make_calendar(name="Work")
    calendar.save_event("\r\n".join([
        "BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:test", "BEGIN:VEVENT", "UID:1", "DTSTAMP:20260314T090000Z",
        "DTSTART:20260314T100000Z", "DTEND:20260314T110000Z", "SUMMARY:Tea", "END:VEVENT", "END:VCALENDAR", "",
    ]))
    for calendar in client.principal().calendars():
        print(calendar.url.path.split("/")[1].replace("%40", "@"), ["Tea" in event.data for event in calendar.events()])
"#;

async fn use_calendar(gateway: &Gateway, token: &str) -> Result<String, String> {
    let mut command = Command::new(peers("venv/bin/python"));
    command.args(["-c", CLIENT, &format!("http://{}/", gateway.address()), token]);
    let output = run(command).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[tokio::test]
async fn a_calendar_is_used_with_a_personal_access_token() {
    let program = peers("venv/bin/radicale");
    if !is_installed(&program) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = Port::reserve();
    let config = fence("radicale.md", "ini")
        .replace("127.0.0.1:5232", &port.address().to_string())
        .replace("/var/lib/radicale", &folder.path().display().to_string());
    std::fs::write(folder.path().join("config"), config).unwrap();
    let mut command = Command::new(program);
    command.arg("--config").arg(folder.path().join("config"));
    let _radicale = start(command);
    accepts(port.number()).await;

    let gateway = behind("radicale.md", "radicale", &port, "").start().await;
    add_account(&gateway, &["user"]).await;
    let token = token(&gateway).await;
    let used = use_calendar(&gateway, &token).await.unwrap();
    assert_eq!(used, format!("{EMAIL} [True]"));
    assert!(folder.path().join("collections/collection-root").join(EMAIL).is_dir());
    portcullis(&gateway, &["user", "token", "revoke", EMAIL, "test"]).await;
    let refused = use_calendar(&gateway, &token).await.unwrap_err();
    assert!(refused.contains("AuthorizationError"), "{refused}");
}
