//! Code that the three programs of this benchmark share.

use std::future::Future;
use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The longest request or response head that is read.
pub const HEAD_LIMIT: usize = 64 * 1024;

/// Accepts connections until the process ends, and owns the task of each connection.
pub async fn serve<F, T>(address: SocketAddr, connection: F) -> io::Result<()>
where
    F: Fn(TcpStream) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(address).await?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                connections.spawn(connection(stream));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Runs a program on one thread.
pub fn on_one_thread<T>(program: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(program)
}

/// The command line: an address, then `--name value` pairs.
#[derive(Debug)]
pub struct Arguments {
    positional: Vec<String>,
    named: Vec<(String, String)>,
}

impl Arguments {
    /// Reads the command line of this process.
    pub fn read() -> io::Result<Self> {
        let mut arguments = Self { positional: Vec::new(), named: Vec::new() };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                Some(name) => {
                    let value = words.next().ok_or_else(|| wrong(&format!("--{name} needs a value")))?;
                    arguments.named.push((name.to_owned(), value));
                }
                None => arguments.positional.push(word),
            }
        }
        Ok(arguments)
    }

    /// The address at a position.
    pub fn address(&self, position: usize) -> io::Result<SocketAddr> {
        let word = self.positional.get(position).ok_or_else(|| wrong("an address is missing"))?;
        word.parse().map_err(|_| wrong(&format!("`{word}` is not an address")))
    }

    /// The value of an option, or its default.
    pub fn number<N: std::str::FromStr>(&self, name: &str, default: N) -> io::Result<N> {
        match self.text(name) {
            None => Ok(default),
            Some(value) => value.parse().map_err(|_| wrong(&format!("--{name}: `{value}` is not a number"))),
        }
    }

    /// The lines of the file that an option names.
    pub fn lines(&self, name: &str) -> io::Result<Vec<String>> {
        let path = self.text(name).ok_or_else(|| wrong(&format!("--{name} is missing")))?;
        let lines: Vec<String> = std::fs::read_to_string(path)?.lines().map(str::to_owned).collect();
        if lines.is_empty() { Err(wrong(&format!("--{name}: the file is empty"))) } else { Ok(lines) }
    }

    /// The value of an option, if it is given.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
