//! `portcullis proxy-config`

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::{Args, ValueEnum};

use super::explain::Kind;
use super::{Failure, print};
use crate::clock::Clock;
use crate::config::value::CreateFiles;
use crate::process;
use crate::proxies::{
    Implementation, MARK, Request, Site, Unwritable, Written, manifests, render, start_command,
};
use crate::telemetry::metrics::Metrics;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The proxy.
    kind: Kind,
    /// The address and port on which the proxy listens; ":8080" means every IPv4 address.
    /// Not for gateway-api, where the Gateway has the listener.
    #[arg(long, value_name = "ADDRESS", value_parser = listen)]
    listen: Option<SocketAddr>,
    /// The URL of the application: http://HOST:PORT or https://NAME:PORT, for gateway-api
    /// http://SERVICE:PORT.
    #[arg(long, value_name = "URL")]
    upstream: String,
    /// The certificates that an application with https is verified with, as PEM. Default: the
    /// file in which Debian keeps those of the system.
    #[arg(long, value_name = "FILE")]
    upstream_ca: Option<PathBuf>,
    /// A host that the proxy serves; may be repeated. Default: the hosts of the external routes.
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// The address at which the proxy reaches the [verify] listener. Default: its `listen`.
    #[arg(long, value_name = "ADDRESS")]
    verify: Option<SocketAddr>,
    /// For gateway-api: what serves the Gateway API in the cluster.
    #[arg(long, value_name = "NAME", default_value = "envoy-gateway")]
    implementation: Served,
    /// The folder to write to; it is created if it does not exist. gateway-api prints its manifests
    /// and needs none.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// What serves the Gateway API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Served {
    /// Envoy Gateway, with its SecurityPolicy.
    EnvoyGateway,
    /// Any with the ExternalAuth filter of HTTPRoute.
    ExternalAuth,
    /// Traefik, with its Middleware.
    Traefik,
}

impl From<Served> for Implementation {
    fn from(served: Served) -> Self {
        match served {
            Served::EnvoyGateway => Self::EnvoyGateway,
            Served::ExternalAuth => Self::ExternalAuth,
            Served::Traefik => Self::Traefik,
        }
    }
}

/// An address to listen on.
fn listen(text: &str) -> Result<SocketAddr, String> {
    let whole = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    whole.parse().map_err(|_| "write an address and a port, such as 127.0.0.1:8080".to_owned())
}

/// Writes a configuration that makes this proxy ask, and says how to start it.
pub(super) fn proxy_config(path: &Path, arguments: &Arguments) -> Result<(), Failure> {
    let clock = Clock::system();
    let is_cluster = arguments.kind == Kind::GatewayApi;
    let missing = |name| Failure::Usage(format!("this proxy needs {name}"));
    let anywhere = SocketAddr::from(([0, 0, 0, 0], 80));
    let listen = arguments.listen.or(is_cluster.then_some(anywhere));
    let listen = listen.ok_or_else(|| missing("--listen ADDRESS"))?;
    let snapshot = process::compile(path, None, CreateFiles::No, &Metrics::new(), &clock)?.snapshot;
    let request = Request {
        listen,
        upstream: arguments.upstream.clone(),
        upstream_ca: arguments.upstream_ca.as_deref().map(absolute).transpose()?,
        hosts: arguments.hosts.clone(),
        verify: arguments.verify,
    };
    let site = Site::new(&snapshot, &request).map_err(|error| unwritable(&error))?;
    if is_cluster {
        let manifests = manifests(arguments.implementation.into(), &site)
            .map_err(|error| unwritable(&error))?;
        if let Some(folder) = &arguments.out {
            write(folder, std::slice::from_ref(&manifests))?;
        }
        return print(&manifests.text);
    }
    let folder = arguments.out.as_deref().ok_or_else(|| missing("--out FOLDER"))?;
    let dialect = arguments.kind.dialect();
    let names = write(folder, &render(dialect, &site))?;
    let (folder, command) = (quoted(folder), start_command(dialect));
    print(&format!("wrote {names}\nstart it: cd {folder} && {command}\n"))
}

/// Some of it comes from the command line, the rest from the file.
fn unwritable(error: &Unwritable) -> Failure {
    match error {
        Unwritable::Upstream(_)
        | Unwritable::Address(_)
        | Unwritable::Elsewhere(_)
        | Unwritable::Ca(_)
        | Unwritable::Host(_) => Failure::Usage(error.to_string()),
        _ => Failure::Other(error.to_string()),
    }
}

/// The path from every folder: the proxy runs in another one.
fn absolute(path: &Path) -> Result<String, Failure> {
    let whole = fs::canonicalize(path)
        .map_err(|error| Failure::Other(format!("cannot read {}: {error}", path.display())))?;
    Ok(whole.display().to_string())
}

/// Writes the files, and returns their paths in words.
fn write(folder: &Path, files: &[Written]) -> Result<String, Failure> {
    let failed = |what: &Path, error: io::Error| {
        Failure::Other(format!("cannot write {}: {error}", what.display()))
    };
    fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    for file in files {
        let path = folder.join(file.name);
        if is_foreign(&path) {
            return Err(Failure::Other(format!(
                "{} was not written by this command, and is not replaced: move it away, or choose another folder",
                path.display()
            )));
        }
    }
    for file in files {
        let path = folder.join(file.name);
        fs::write(&path, &file.text).map_err(|error| failed(&path, error))?;
    }
    let names: Vec<String> =
        files.iter().map(|file| folder.join(file.name).display().to_string()).collect();
    Ok(names.join(" and "))
}

/// Whether there is a file that this command has not written.
fn is_foreign(path: &Path) -> bool {
    match fs::read(path) {
        Ok(bytes) => !bytes.windows(MARK.len()).take(8).any(|start| start == MARK.as_bytes()),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain =
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+=".contains(&byte));
    if is_plain && !text.is_empty() { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
