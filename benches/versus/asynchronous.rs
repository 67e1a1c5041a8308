//! A server as one writes it with tokio: a task for each connection, lines by its codec.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use tokio::fs;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::spawn_blocking;
use tokio_util::codec::{Framed, LinesCodec};

use crate::store::{Store, header};

/// Serves until the process is killed. Files are written by `tokio::fs`, or else with calls that block: in the task
/// where they do not wait for the disk, and where they do on the pool of threads.
pub fn serve(address: SocketAddr, store: Store, many_threads: bool, async_files: bool) -> io::Result<()> {
    let mut builder = if many_threads { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    builder.enable_io().build()?.block_on(async {
        let store = Arc::new(store);
        let listener = TcpListener::bind(address).await?;
        loop {
            let (stream, peer) = listener.accept().await?;
            let _ = stream.set_nodelay(true);
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let _ = talk(stream, peer, store, async_files).await;
            });
        }
    })
}

type Lines = Framed<TcpStream, LinesCodec>;

async fn talk(
    stream: TcpStream, peer: SocketAddr, store: Arc<Store>, async_files: bool,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    // The codec ends each line in LF alone, so all that is said here has a CR at its end.
    let mut lines = Framed::new(stream, LinesCodec::new());
    let (mut from, mut recipients) = (String::new(), 0);
    lines.send("220 bench ESMTP\r").await?;
    while let Some(command) = lines.next().await.transpose()? {
        let verb = command.get(..4).unwrap_or_default().to_ascii_uppercase();
        let reply = match verb.as_str() {
            "EHLO" => "250-bench\r\n250-PIPELINING\r\n250 8BITMIME\r",
            "MAIL" => {
                from = command.get(10..).unwrap_or_default().to_owned();
                "250 2.1.0 Ok\r"
            }
            "RCPT" if !from.is_empty() => {
                recipients += 1;
                "250 2.1.5 Ok\r"
            }
            "DATA" if recipients > 0 => {
                lines.send("354 End with a dot\r").await?;
                let content = read_content(&mut lines, header(&from, peer.ip())).await?;
                (from, recipients) = (String::new(), 0);
                match save(&store, content, async_files).await {
                    Ok(()) => "250 2.0.0 Stored\r",
                    Err(_) => "451 4.3.0 Not stored\r",
                }
            }
            "QUIT" => {
                lines.send("221 2.0.0 Bye\r").await?;
                return Ok(());
            }
            _ => "500 5.5.1 What?\r",
        };
        lines.send(reply).await?;
    }
    Ok(())
}

/// Reads up to the line with the dot; lines end in LF alone in the file.
async fn read_content(lines: &mut Lines, header: String) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    let mut content = header.into_bytes();
    while let Some(line) = lines.next().await.transpose()? {
        if line == "." {
            return Ok(content);
        }
        content.extend_from_slice(line.strip_prefix('.').unwrap_or(&line).as_bytes());
        content.push(b'\n');
    }
    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
}

async fn save(store: &Arc<Store>, content: Vec<u8>, async_files: bool) -> io::Result<()> {
    if !async_files && !store.durable {
        return store.save(&content);
    }
    let store = Arc::clone(store);
    if !async_files {
        return spawn_blocking(move || store.save(&content)).await?;
    }
    let (tmp, new) = store.names();
    let mut file = fs::File::create_new(&tmp).await?;
    file.write_all(&content).await?;
    file.flush().await?;
    if store.durable {
        file.sync_data().await?;
    }
    fs::rename(tmp, new).await?;
    if store.durable { spawn_blocking(move || store.new.sync_all()).await? } else { Ok(()) }
}
