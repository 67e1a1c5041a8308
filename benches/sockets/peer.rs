//! The server that mailchute is measured against: as one writes it with tokio, a task for each connection, the disk
//! on the pool of threads. It promises the same: file and directory are flushed before 250.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

struct Store {
    path: PathBuf,
    /// Held open, which is more than most servers do.
    new: File,
    sequence: AtomicU64,
}

impl Store {
    /// Runs on a thread that may wait.
    fn save(&self, content: &[u8]) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let number = self.sequence.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}.M{}P{}Q{number}.bench", now.as_secs(), now.subsec_micros(), std::process::id());
        let (from, to) = (self.path.join("tmp").join(&name), self.path.join("new").join(&name));
        let mut file = File::create_new(&from)?;
        file.write_all(content)?;
        file.sync_data()?;
        fs::rename(from, to)?;
        self.new.sync_all()
    }
}

/// Serves until the runtime is dropped.
pub fn start(path: &Path, many_threads: bool) -> (SocketAddr, Runtime) {
    for name in ["tmp", "new", "cur"] {
        fs::create_dir_all(path.join(name)).unwrap();
    }
    let new = File::open(path.join("new")).unwrap();
    let store = Arc::new(Store { path: path.to_owned(), new, sequence: AtomicU64::new(0) });
    let threads = if many_threads { std::thread::available_parallelism().unwrap().get() } else { 1 };
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_io().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(serve(stream, peer, Arc::clone(&store)));
        }
    });
    (address, runtime)
}

async fn serve(stream: TcpStream, peer: SocketAddr, store: Arc<Store>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut line, mut from, mut recipients) = (Vec::new(), String::new(), 0);
    stream.write_all(b"220 bench ESMTP\r\n").await?;
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let command = String::from_utf8_lossy(&line).trim_end().to_owned();
        let verb = command.get(..4).unwrap_or_default().to_ascii_uppercase();
        let reply: &[u8] = match verb.as_str() {
            "EHLO" => b"250-bench\r\n250 8BITMIME\r\n",
            "MAIL" => {
                from = command.get(10..).unwrap_or_default().to_owned();
                b"250 2.1.0 Ok\r\n"
            }
            "RCPT" if !from.is_empty() => {
                recipients += 1;
                b"250 2.1.5 Ok\r\n"
            }
            "DATA" if recipients > 0 => {
                stream.write_all(b"354 End with a dot\r\n").await?;
                let content = read_content(&mut stream, format!("Return-Path: {from}\nReceived: from bench ([{}])\n\tby bench with ESMTP\n\tfor <user@example.com>\n", peer.ip())).await?;
                (from, recipients) = (String::new(), 0);
                let store = Arc::clone(&store);
                match tokio::task::spawn_blocking(move || store.save(&content)).await? {
                    Ok(()) => b"250 2.0.0 Stored\r\n",
                    Err(_) => b"451 4.3.0 Not stored\r\n",
                }
            }
            "QUIT" => {
                stream.write_all(b"221 2.0.0 Bye\r\n").await?;
                return Ok(());
            }
            _ => b"500 5.5.1 What?\r\n",
        };
        stream.write_all(reply).await?;
    }
}

/// Reads up to the line with the dot; lines end in LF alone in the file.
async fn read_content(stream: &mut BufReader<TcpStream>, header: String) -> io::Result<Vec<u8>> {
    let mut content = header.into_bytes();
    let mut line = Vec::new();
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = line.strip_suffix(b"\r\n").unwrap_or(&line);
        if text == b"." {
            return Ok(content);
        }
        content.extend_from_slice(text.strip_prefix(b".").unwrap_or(text));
        content.push(b'\n');
    }
}
