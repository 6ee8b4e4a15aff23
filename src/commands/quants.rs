//! `inspect hf:owner/repo`: the models of a repository, and which of them fit a machine. [I/O]

use super::machine::MachineArgs;
use super::{Build, Outcome, Output, model_arg};
use crate::ask::quants::{self, Quants, Row};

const PARALLEL: usize = 4;

/// Runs the listing; exit 1 where a machine is given and nothing fits it.
pub fn run(repo: &str, machine: Option<&MachineArgs>, output: &Output) -> anyhow::Result<Outcome> {
    let document = of(repo, machine, output)?;
    output.show(&document)?;
    let any = document.rows.iter().filter_map(|row| row.fits.as_ref()).any(|fits| fits.auto.fits);
    Ok(if document.machine.is_some() && !any { Outcome::No } else { Outcome::Yes })
}

/// The models of a repository, and which of them fit the machine, where one is given.
pub fn of(repo: &str, machine: Option<&MachineArgs>, output: &Output) -> anyhow::Result<Quants> {
    let described = |args: &MachineArgs| args.machine().map(|machine| (args.margin(&machine), machine));
    let machine = machine.map(described).transpose()?;
    let target = Build::of(None).target();
    let rows = model_arg::with_client(output, |client| {
        let quants = client.quants(repo)?;
        let (first, rest) = quants.split_at(quants.len().min(1));
        let judge = |quant| {
            let (margin, machine) = machine.as_ref()?;
            let opened = client.open_quant_beside(repo, quant, first.first()).map_err(anyhow::Error::from);
            Some(opened.and_then(|gguf| Ok(quants::judge(gguf, &format!("hf:{repo}"), machine, *margin, target)?)))
        };
        let mut rows = Vec::with_capacity(quants.len());
        for some in [first].into_iter().chain(rest.chunks(PARALLEL)) {
            std::thread::scope(|scope| {
                let threads: Vec<_> = some.iter().map(|quant| scope.spawn(move || judge(quant))).collect();
                for (quant, thread) in some.iter().zip(threads) {
                    let failed = || Some(Err(anyhow::anyhow!("internal error: please report this")));
                    let judged = thread.join().unwrap_or_else(|_| failed());
                    let judged = judged.map(|judged| judged.map_err(|error| format!("{error:#}")));
                    rows.push(Row::of(repo, &quants, quant, judged));
                }
            });
        }
        Ok(rows)
    })?;
    Ok(Quants::new(repo, machine.map(|(_, machine)| machine), rows))
}
