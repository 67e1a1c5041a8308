//! A server with a thread for each connection, whose protocol is the crate `mailin`'s.

use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use mailin::{Action, Handler, Response, SessionBuilder, response};

use crate::store::{Store, header};

/// Serves until the process is killed.
pub fn serve(address: SocketAddr, store: Store) -> io::Result<()> {
    let (store, builder) = (Arc::new(store), SessionBuilder::new("bench"));
    for stream in TcpListener::bind(address)?.incoming() {
        let (stream, store, builder) = (stream?, Arc::clone(&store), builder.clone());
        thread::Builder::new().spawn(move || talk(&stream, store, &builder))?;
    }
    Ok(())
}

fn talk(stream: &TcpStream, store: Arc<Store>, builder: &SessionBuilder) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?.ip();
    let mut session = builder.build(peer, Message { store, peer, content: Vec::new() });
    let (mut reader, mut writer) = (BufReader::new(stream), BufWriter::new(stream));
    let mut line = Vec::new();
    let mut response = session.greeting();
    loop {
        if response.action != Action::NoReply {
            response.write_to(&mut writer)?;
            writer.flush()?;
        }
        line.clear();
        if response.action == Action::Close || reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        response = session.process(&line);
    }
}

struct Message {
    store: Arc<Store>,
    peer: IpAddr,
    content: Vec<u8>,
}

impl Handler for Message {
    fn data_start(&mut self, _: &str, from: &str, _: bool, _: &[String]) -> Response {
        self.content = header(from, self.peer).into_bytes();
        response::OK
    }

    fn data(&mut self, line: &[u8]) -> io::Result<()> {
        let text = line.strip_suffix(b"\r\n");
        self.content.extend_from_slice(text.unwrap_or(line));
        if text.is_some() {
            self.content.push(b'\n');
        }
        Ok(())
    }

    fn data_end(&mut self) -> Response {
        match self.store.save(&self.content) {
            Ok(()) => response::OK,
            Err(_) => response::INTERNAL_ERROR,
        }
    }
}
