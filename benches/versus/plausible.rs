//! Whether the load generator finds what Postfix's smtp-source finds.

use std::process::{Command, Stdio};
use std::time::Instant;

use crate::common::{Workplace, median};
use crate::load::{self, Plan, Until};
use crate::process::{self, free_address};
use crate::scenario::KIB;
use crate::servers::{Server, find};

const ROUNDS: usize = 5;
const MESSAGES: u64 = 10_000;
const CONNECTIONS: usize = 10;

/// One line: both find a rate of mailchute's, in turn.
pub fn compare(workplace: &Workplace) -> Result<String, String> {
    let Some(program) = find("smtp-source") else {
        return Ok("the load generator was not compared with smtp-source, which is not on this machine".to_owned());
    };
    let address = free_address();
    let mut command = Server::Mailchute.command(address, &workplace.maildir(), false, KIB);
    let server = process::Server::start(&mut command, address)?;
    let plan = Plan { connections: CONNECTIONS, ..Plan::new(address, Until::Messages(MESSAGES)) };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(load::run(&plan)?.rate());
        let mut command = Command::new(&program);
        // -d keeps connections.
        command.args(["-d", "-s", &CONNECTIONS.to_string(), "-m", &MESSAGES.to_string(), "-l", &KIB.to_string()]);
        command.arg(address.to_string()).stdout(Stdio::null()).stderr(Stdio::null());
        let begun = Instant::now();
        let status = command.status().map_err(|error| error.to_string())?;
        if !status.success() {
            return Err(format!("smtp-source: {status}"));
        }
        theirs.push(MESSAGES as f64 / begun.elapsed().as_secs_f64());
    }
    drop(server);
    workplace.clear();
    let (ours, theirs) = (median(ours), median(theirs));
    Ok(format!(
        "the load generator beside smtp-source, both sending 1 KiB over {CONNECTIONS} connections to mailchute on tmpfs: \
         {ours:.0} and {theirs:.0} messages/s"
    ))
}
