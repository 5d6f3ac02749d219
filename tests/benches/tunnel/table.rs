//! The report for people: Markdown tables, aligned to be read as they are.

use std::fmt::Write as _;

use crate::figures::{Figure, micros};
use crate::measure::{Bulk, DISTURBED_CORES, HTTP_CONNECTIONS, Plan, Run, STREAMS};
use crate::netns::Place;
use crate::results::{Results, Spread};
use crate::subject::Subject;

/// The whole report.
pub(crate) fn report(results: &Results, plan: &Plan, figures: &[Figure]) -> String {
    let mut text = String::from("\n");
    let (rounds, window) = (plan.rounds, plan.window.as_secs());
    line(&mut text, &format!("Medians of {rounds} (least-greatest), windows of {window} s."));
    line(&mut text, "CPU: of the tunnel's own processes, without source and sink.");
    for note in &results.notes {
        line(&mut text, &format!("{note}."));
    }
    let others = results.others_cores();
    if others > DISTURBED_CORES {
        line(&mut text, &format!("DISTURBED: other processes used up to {others:.2} cores."));
    }
    section(&mut text, "Bulk", &bulk(results));
    section(&mut text, "Latency and HTTP", &latency(results));
    section(&mut text, "Bulk with the veths' offloads off", &without_offloads(results));
    section(&mut text, "Figures to reach", &targets(figures));
    for error in results.errors() {
        line(&mut text, &format!("FAILED: {error}"));
    }
    text
}

type Rows = Vec<Vec<String>>;

fn bulk(results: &Results) -> Rows {
    let eight = |what: &str| format!("{STREAMS} streams {what}");
    let mut rows = vec![strings(&["tunnel", "1 stream Gbit/s", "CPU s/GB"])];
    rows[0].extend(Place::ALL.map(|place| format!("{place} s/GB")));
    rows[0].extend([eight("Gbit/s"), "CPU s/GB".to_owned()]);
    for subject in results.subjects() {
        let cell = |value: &dyn Fn(&Run) -> f64| cell(results.spread(subject, value), 2);
        let mut row = vec![subject.to_string()];
        row.push(cell(&|run| run.one.gbit_s));
        row.push(cell(&|run| run.one.cpu_s_per_gb()));
        row.extend(Place::ALL.map(|place| cell(&|run| run.one.role_s_per_gb(place))));
        row.push(cell(&|run| run.eight.gbit_s));
        row.push(cell(&|run| run.eight.cpu_s_per_gb()));
        rows.push(row);
    }
    rows
}

fn latency(results: &Results) -> Rows {
    let mut rows =
        vec![strings(&["tunnel", "echo p50 us", "p99 us", "dial to first byte p50 us", "p99 us"])];
    rows[0].push(format!("HTTP requests/s, {HTTP_CONNECTIONS} connections"));
    for subject in results.subjects() {
        let cell = |value: &dyn Fn(&Run) -> f64| cell(results.spread(subject, value), 0);
        rows.push(vec![
            subject.to_string(),
            cell(&|run| micros(run.echo.p50)),
            cell(&|run| micros(run.echo.p99)),
            cell(&|run| micros(run.dial.p50)),
            cell(&|run| micros(run.dial.p99)),
            cell(&|run| run.http_per_s),
        ]);
    }
    rows
}

fn without_offloads(results: &Results) -> Rows {
    let mut rows = vec![strings(&["tunnel", "1 stream Gbit/s", "CPU s/GB"])];
    rows[0].extend(Place::ALL.map(|place| format!("{place} s/GB")));
    for subject in results.subjects_without_offloads() {
        rows.push(row_without_offloads(results, subject));
    }
    rows
}

fn row_without_offloads(results: &Results, subject: Subject) -> Vec<String> {
    let cell =
        |value: &dyn Fn(&Bulk) -> f64| cell(results.spread_without_offloads(subject, value), 2);
    let mut row = vec![subject.to_string()];
    row.push(cell(&|bulk| bulk.gbit_s));
    row.push(cell(&|bulk| bulk.cpu_s_per_gb()));
    row.extend(Place::ALL.map(|place| cell(&|bulk| bulk.role_s_per_gb(place))));
    row
}

fn targets(figures: &[Figure]) -> Rows {
    let mut rows = vec![strings(&["figure", "value", "unit", "to reach", ""])];
    for figure in figures {
        let (Some(target), Some(met)) = (&figure.target, figure.met) else { continue };
        rows.push(vec![
            figure.name.clone(),
            number(figure.value),
            figure.unit.to_owned(),
            target.clone(),
            if met { "met" } else { "MISSED" }.to_owned(),
        ]);
    }
    rows
}

fn cell(spread: Option<Spread>, decimals: usize) -> String {
    let Some(Spread { median, least, greatest }) = spread else { return "-".to_owned() };
    let digits = |value: f64| format!("{value:.decimals$}");
    if digits(least) == digits(greatest) {
        return digits(median);
    }
    format!("{} ({}-{})", digits(median), digits(least), digits(greatest))
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// A titled table, unless it has no rows but its header.
fn section(text: &mut String, title: &str, rows: &Rows) {
    if rows.len() < 2 {
        return;
    }
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    line(text, &format!("\n{title}\n"));
    for (index, row) in rows.iter().enumerate() {
        line(text, &aligned(row, &widths));
        if index == 0 {
            let dashes: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
            line(text, &aligned(&dashes, &widths));
        }
    }
}

fn aligned(row: &[String], widths: &[usize]) -> String {
    let mut line = String::from("|");
    for (cell, width) in row.iter().zip(widths) {
        let _ = write!(line, " {cell:<width$} |");
    }
    line
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
