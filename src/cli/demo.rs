//! `portcullis demo`: the top-level `gateway.toml`, as it stands, with two tokens and lines to paste.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use super::token::{MintRequest, mint};
use super::{Failure, print};
use crate::process;
use crate::telemetry::ids;

/// The file that the demo runs.
const GATEWAY_TOML: &str = include_str!("../../gateway.toml");

/// Tokens of the demo live this long.
const TTL: &str = "8h";

pub(super) fn demo() -> Result<(), Failure> {
    let folder = Folder::new()?;
    let path = folder.0.join("gateway.toml");
    fs::write(&path, on_free_ports(GATEWAY_TOML))?;
    let token = |subject: &str, roles: &[&str]| {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        mint(
            &path,
            &MintRequest {
                issuer: "local".to_owned(),
                subject: subject.to_owned(),
                roles,
                claims: Vec::new(),
                ttl: TTL.to_owned(),
                algorithm: None,
            },
        )
    };
    let (user, admin) = (token("alice", &["user"])?, token("root", &["user", "admin"])?);
    let written = path.clone();
    process::run(&path, move |addresses| {
        // Without a terminal to print to there is nobody to tell; the gateway serves all the same.
        let _ = print(&told(addresses, &written, &user, &admin));
    })?;
    Ok(())
}

fn told(addresses: &[SocketAddr], path: &Path, user: &str, admin: &str) -> String {
    let url = addresses.first().map_or_else(|| "http://127.0.0.1:8080".to_owned(), |address| format!("http://{address}"));
    format!(
        "
Portcullis stands at {url}, before an application that answers with the request it was sent.
Its configuration is {file}

export USER_TOKEN={user}
export ADMIN_TOKEN={admin}

# everybody may
curl -i {url}/public/hello

# nobody without a token
curl -i {url}/reports/q3

# alice may; see which headers the application gets
curl -i -H \"Authorization: Bearer $USER_TOKEN\" {url}/reports/q3

# alice cannot pose as somebody else
curl -i -H \"Authorization: Bearer $USER_TOKEN\" -H 'X-Auth-User: root' -H 'X_Auth_Roles: admin' {url}/reports/q3

# alice is no admin
curl -i -H \"Authorization: Bearer $USER_TOKEN\" {url}/admin/users
curl -i -H \"Authorization: Bearer $ADMIN_TOKEN\" {url}/admin/users

# no way around the check
curl -i --path-as-is {url}/public/../admin/users

# the sixth login in a minute is refused
for i in 1 2 3 4 5 6; do curl -s -o /dev/null -w '%{{http_code}}\\n' -X POST {url}/login; done

The export lines first, then the others in any order, in a second terminal. Ctrl-C stops the demo; it then ends within seconds.

",
        file = path.display()
    )
}

/// The file with other ports where its own are taken.
fn on_free_ports(text: &str) -> String {
    ["127.0.0.1:8080", "127.0.0.1:9901"].into_iter().fold(text.to_owned(), |text, address| {
        let is_free = TcpListener::bind(address).is_ok();
        if is_free { text } else { text.replace(&format!("\"{address}\""), "\"127.0.0.1:0\"") }
    })
}

/// A folder that goes when the demo ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("portcullis-demo-{}", ids::request_id()));
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that somebody else has removed is gone all the same.
        let _ = fs::remove_dir_all(&self.0);
    }
}
