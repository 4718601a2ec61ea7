//! `portcullis demo`: the `gateway.toml` of the repository with a store in a temporary folder, two
//! accounts, and commands to paste.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use super::{Failure, print};
use crate::clock::Clock;
use crate::compile::DEFAULT_MAX_CONNECTIONS;
use crate::config::value::CreateFiles;
use crate::descriptors;
use crate::identity::account::{Accounts, NewAccount};
use crate::identity::email::Email;
use crate::identity::password::{Password, StoredHash};
use crate::process;
use crate::store::Store;
use crate::telemetry::ids;
use crate::telemetry::metrics::Metrics;

/// The configuration file of the demo.
const GATEWAY_TOML: &str = include_str!("../../gateway.toml");

/// The accounts: address, password, name and roles. They only exist on this machine, in a store
/// that is deleted when the demo ends.
const ACCOUNTS: [(&str, &str, &str, &[&str]); 2] = [
    ("alice@example.com", "harbour-violet-42", "Alice", &["user"]),
    ("root@example.com", "copper-lantern-87", "Root", &["user", "admin"]),
];

pub(super) fn demo() -> Result<(), Failure> {
    let folder = Folder::new()?;
    let path = folder.0.join("gateway.toml");
    fs::write(&path, with_room_for_connections(&on_free_ports(GATEWAY_TOML)?))?;
    add_accounts(&path)?;
    let written = path.clone();
    process::run(&path, CreateFiles::Yes, move |addresses| {
        // Without standard output nobody can read the instructions; the gateway runs anyway.
        let _ = print(&instructions(addresses, &written));
    })?;
    Ok(())
}

/// Creates the store that the gateway will open.
fn add_accounts(path: &Path) -> Result<(), Failure> {
    let clock = Clock::system();
    let compiled = process::compile(path, None, CreateFiles::Yes, &Metrics::new(), &clock)?;
    let settings = compiled
        .snapshot
        .start
        .store
        .ok_or_else(|| Failure::Other("gateway.toml has no [identity]".to_owned()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let failed = |error: &dyn std::fmt::Display| Failure::Other(error.to_string());
        let store = Store::open(&settings).await.map_err(|error| failed(&error))?;
        let accounts = Accounts::new(store.clone(), None);
        for (email, password, name, roles) in ACCOUNTS {
            let new = NewAccount {
                email: Email::parse(email).map_err(|error| failed(&error))?,
                name: Some(name.to_owned()),
                password: Some(
                    StoredHash::hash(&Password::new(password.to_owned()))
                        .map_err(|error| failed(&error))?,
                ),
                roles: roles.iter().map(|&role| role.to_owned()).collect(),
                email_verified: true,
            };
            accounts.add(new, clock.unix_seconds()).await.map_err(|error| failed(&error))?;
        }
        store.close().await;
        Ok(())
    })
}

fn instructions(addresses: &[SocketAddr], path: &Path) -> String {
    let url = addresses
        .first()
        .map_or_else(|| "http://127.0.0.1:8080".to_owned(), |address| format!("http://{address}"));
    // Every browser keeps a login on http://localhost; not every one does on http://127.0.0.1.
    let browser = url.replace("127.0.0.1", "localhost");
    let [(alice, alices, ..), (root, roots, ..)] = ACCOUNTS;
    format!(
        "Open {browser} and log in as {alice} with the password {alices}, or as the admin {root} with {roots}.

Portcullis listens on {url}, in front of an application that shows each request it receives.
Its configuration is {file}
The following lines are for a terminal.

# log both in, and store their access tokens
login() {{ curl -s {url}/auth/login --data-urlencode email=$1 --data-urlencode password=$2 | sed 's/.*\"access_token\":\"\\([^\"]*\\)\".*/\\1/'; }}
export USER_TOKEN=$(login {alice} {alices})
export ADMIN_TOKEN=$(login {root} {roots})

# open to everyone
curl -i {url}/public/hello

# refused without a token
curl -i {url}/reports/q3

# alice is allowed; see which headers the application receives
curl -i -H \"Authorization: Bearer $USER_TOKEN\" {url}/reports/q3

# alice cannot pose as someone else
curl -i -H \"Authorization: Bearer $USER_TOKEN\" -H 'X-Auth-User: root' -H 'X_Auth_Roles: admin' {url}/reports/q3

# alice is not an admin
curl -i -H \"Authorization: Bearer $USER_TOKEN\" {url}/admin/users
curl -i -H \"Authorization: Bearer $ADMIN_TOKEN\" {url}/admin/users

# no way around the check
curl -i --path-as-is {url}/public/../admin/users

# who alice is, and where she is logged in
curl -i -H \"Authorization: Bearer $USER_TOKEN\" {url}/auth/me
curl -i -H \"Authorization: Bearer $USER_TOKEN\" {url}/auth/sessions

# the sixth login in a minute is refused
for i in 1 2 3 4 5 6; do curl -s -o /dev/null -w '%{{http_code}}\\n' -X POST {url}/login; done

# once alice has logged out, her token no longer works
curl -i -X POST -H \"Authorization: Bearer $USER_TOKEN\" {url}/auth/logout
curl -i -H \"Authorization: Bearer $USER_TOKEN\" {url}/reports/q3

Paste the login lines first, then the others in this order, in a second terminal. Ctrl-C stops the demo within seconds.

",
        file = path.display()
    )
}

/// The file with other ports if its own are in use.
fn on_free_ports(text: &str) -> Result<String, Failure> {
    let mut text = text.to_owned();
    for address in ["127.0.0.1:8080", "127.0.0.1:9901"] {
        if TcpListener::bind(address).is_err() {
            let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            text = text.replace(address, &free.to_string());
        }
    }
    Ok(text)
}

/// The file with a lower `max_connections` if the limit of open files has no room for the default.
fn with_room_for_connections(text: &str) -> String {
    match descriptors::make_room(DEFAULT_MAX_CONNECTIONS) {
        None => text.to_owned(),
        Some(shortage) => text.replacen(
            &format!("# max_connections = {DEFAULT_MAX_CONNECTIONS}"),
            &format!("max_connections = {}", shortage.connections()),
            1,
        ),
    }
}

/// A folder that is deleted when the demo ends.
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
        // If something else has already removed the folder, that is fine.
        let _ = fs::remove_dir_all(&self.0);
    }
}
