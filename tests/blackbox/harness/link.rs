//! A network between the gateways and a server, which can be slow, hold questions back, lose answers
//! or lead to another server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// A port that leads to a server. It runs on a thread of its own, and ends with this.
pub struct Link {
    address: SocketAddr,
    state: watch::Sender<State>,
    runtime: Option<Runtime>,
}

#[derive(Clone, Debug)]
struct State {
    target: SocketAddr,
    /// By how much each answer is late.
    delay: Duration,
    /// Connections of earlier generations are cut.
    generation: usize,
    /// What happens to a connection once a question on it contains this.
    on: Option<(Vec<u8>, Fate)>,
    /// The connections that were struck by it.
    struck: Arc<Mutex<usize>>,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The question and what follows are held back, until the connections are released.
    Held,
    /// Its answer and what follows are lost.
    Unanswered,
    /// The same, from the question that follows it.
    NextUnanswered,
}

impl Link {
    /// A link to this port of the loopback interface.
    pub fn to(port: u16) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let target = (Ipv4Addr::LOCALHOST, port).into();
        let (delay, generation, on, struck) = (Duration::ZERO, 0, None, Arc::default());
        let (state, _) = watch::channel(State { target, delay, generation, on, struck });
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let watching = state.subscribe();
        runtime.spawn(async { accept(TcpListener::from_std(listener).unwrap(), watching).await });
        Self { address, state, runtime: Some(runtime) }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on, each answer is this late.
    pub fn slow(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Leads to another port, and cuts the connections.
    pub fn lead_to(&self, port: u16) {
        self.state.send_modify(|state| {
            state.target = (Ipv4Addr::LOCALHOST, port).into();
            state.generation += 1;
        });
    }

    /// Leads new connections to another port.
    pub fn lead_new_to(&self, port: u16) {
        self.state.send_modify(|state| state.target = (Ipv4Addr::LOCALHOST, port).into());
    }

    /// Strikes the next connection with a question that contains this.
    pub fn strike(&self, question: &str, fate: Fate) {
        self.state.send_modify(|state| {
            *state.struck.lock().unwrap() = 0;
            state.on = Some((question.as_bytes().to_vec(), fate));
        });
    }

    /// How many connections were struck.
    pub fn struck(&self) -> usize {
        *self.state.borrow().struck.lock().unwrap()
    }

    /// Lets everything through again, also what was held back.
    pub fn mend(&self) {
        self.state.send_modify(|state| (state.on, state.delay) = (None, Duration::ZERO));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // A test drops it in a task, which must not wait.
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

async fn accept(listener: TcpListener, state: watch::Receiver<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let mut state = state.clone();
        tokio::spawn(async move {
            let State { target, generation, .. } = state.borrow_and_update().clone();
            let Ok(server) = TcpStream::connect(target).await else { return };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let (lost, is_lost) = watch::channel(false);
            let questions = ask(from_client, to_server, state.clone(), lost);
            let answers = answer(from_server, to_client, state.clone(), is_lost);
            tokio::select! {
                () = questions => {}
                () = answers => {}
                _ = state.wait_for(|state| state.generation != generation) => {}
            }
        });
    }
}

async fn ask(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    lost: watch::Sender<bool>,
) {
    let mut chunk = vec![0; 64 << 10];
    let mut is_next = false;
    while let Ok(length @ 1..) = client.read(&mut chunk).await {
        let question = &chunk[..length];
        if is_next {
            *state.borrow().struck.lock().unwrap() += 1;
            let _ = lost.send(true);
        }
        let fate = state.borrow().on.as_ref().and_then(|(text, fate)| {
            question.windows(text.len()).any(|window| window == text).then_some(*fate)
        });
        is_next = fate == Some(Fate::NextUnanswered);
        if let Some(fate) = fate.filter(|_| !is_next) {
            *state.borrow().struck.lock().unwrap() += 1;
            match fate {
                // What was sent arrives, even if the client has gone since.
                Fate::Held => drop(state.wait_for(|state| state.on.is_none()).await),
                Fate::Unanswered | Fate::NextUnanswered => drop(lost.send(true)),
            }
        }
        if server.write_all(question).await.is_err() {
            return;
        }
    }
    let _ = server.shutdown().await;
    // The server may still be busy with it.
    std::future::pending::<()>().await;
}

async fn answer(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    state: watch::Receiver<State>,
    is_lost: watch::Receiver<bool>,
) {
    let (sender, mut late) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reading = async {
        let mut chunk = vec![0; 64 << 10];
        while let Ok(length @ 1..) = server.read(&mut chunk).await {
            let due = Instant::now() + state.borrow().delay;
            if !*is_lost.borrow() {
                let _ = sender.send((due, chunk[..length].to_vec()));
            }
        }
        drop(sender);
    };
    let writing = async {
        while let Some((due, bytes)) = late.recv().await {
            tokio::time::sleep_until(due).await;
            if client.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}
