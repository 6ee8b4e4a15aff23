//! Servers that do as they should: what moves, what is kept, redirects, shards.

use super::http_server::{Answer, Server};
use super::*;

#[test]
fn only_header_bytes_move() {
    let server = Server::of_files(vec![("/m.gguf".into(), model())]);
    let client = client();
    let gguf = open(&client, &server.url("/m.gguf?download=true"));
    is_model(&gguf);
    assert_eq!(gguf.unwrap().files[0].bytes.0, model().len() as u64);
    let most = header_bytes() + limits().step;
    assert!(client.moved() <= most && server.sent() <= most, "{} of {most}", server.sent());
}

#[test]
fn a_split_model_of_many_terabytes_costs_a_window_a_shard() {
    const SHARDS: u16 = 40;
    // Each shard says that it holds 16 TiB; the server makes up what nobody reads.
    let shard = |number: u16| {
        let first = if number == 0 { builder() } else { Builder::new() };
        let own = if number == 0 { 3 } else { 0 };
        let all = i32::from(SHARDS) - 1 + 3;
        let first = first.shard(number, SHARDS, all);
        let tensor = format!("blk.{number}.big.weight");
        if own > 0 { first.header() } else { first.tensor(&tensor, &[32, 1 << 37], 0, 1 << 44).header() }
    };
    let server = Server::new(move |request| {
        let number: u16 = request.path["/m-".len()..][..5].parse().unwrap();
        let mut head = shard(number - 1);
        let total = if number == 1 { model().len() as u64 + 4096 } else { head.len() as u64 + (1 << 44) };
        let (first, last) = request.range().unwrap();
        head.resize(head.len().max(last + 1), 0);
        Answer::status(206).header("Content-Range", format!("bytes {first}-{last}/{total}")).body(&head[first..=last])
    });
    let client = client();
    let gguf = open(&client, &server.url("/m-00007-of-00040.gguf")).unwrap();
    assert_eq!((gguf.files.len(), gguf.header.tensors.len()), (40, 42));
    assert!(gguf.files.iter().map(|file| file.bytes.0).sum::<u64>() > 600 << 40);
    assert!(gguf.header.tensors.iter().zip(gguf.header.tensors.iter().skip(1)).all(|(a, b)| a.shard <= b.shard));
    let most = header_bytes() + limits().step + 40 * limits().first_window;
    assert!(client.moved() <= most, "{} of {most}", client.moved());
}

#[test]
fn shards_are_asked_for_side_by_side() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (present, highest) = (now.clone(), most.clone());
    let server = Server::new(move |request| {
        highest.fetch_max(present.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let number: u16 = request.path["/m-".len()..][..5].parse().unwrap();
        // The first shard is asked for alone. The others are answered once three are asked for, or after a minute.
        let started = Instant::now();
        while number > 1 && highest.load(Ordering::SeqCst) < 3 && started.elapsed() < Duration::from_mins(1) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let first = if number == 1 { Builder::small() } else { Builder::new() };
        let shard = first.shard(number - 1, 24, 26).tensor(&format!("blk.{number}.x.weight"), &[32], 0, 128);
        let answer = Answer::range(request, &shard.build(), "\"e\"");
        present.fetch_sub(1, Ordering::SeqCst);
        answer
    });
    let client = Client::new(Limits { parallel: 6, ..limits() }, None, "http://127.0.0.1:9", None).unwrap();
    let gguf = open(&client, &server.url("/m-00001-of-00024.gguf")).unwrap();
    assert_eq!((gguf.files.len(), gguf.header.tensors.len()), (24, 26));
    let most = most.load(Ordering::SeqCst);
    assert!((3..=6).contains(&most), "{most} at the same time");
}

#[test]
fn a_missing_shard_is_named() {
    let shard = |number| Builder::small().shard(number, 2, 4).build();
    let server = Server::of_files(vec![("/m-00001-of-00002.gguf".into(), shard(0))]);
    let error = open(&client(), &server.url("/m-00001-of-00002.gguf")).unwrap_err();
    assert!(error.to_string().contains("m-00002-of-00002.gguf"), "{error}");
}

#[test]
fn redirects_are_followed_and_the_token_stays_with_its_host() {
    let files = Server::of_files(vec![("/cdn/x".into(), model())]);
    let target = files.url("/cdn/x?signed");
    let hub = Server::new(move |request| match request.path.as_str() {
        "/a/m.gguf" => Answer::redirect("../b/m.gguf").header("X-Note", "relative"),
        "/a/../b/m.gguf" => Answer::redirect("/c/m.gguf"),
        _ => Answer::redirect(&target),
    });
    let client = Client::new(limits(), None, &hub.address, Some("hf_secret\n".into())).unwrap();
    is_model(&open(&client, &hub.url("/a/m.gguf")));
    let with = |server: &Server| {
        let requests = server.requests.lock().unwrap();
        requests.iter().filter(|request| request.header("authorization") == Some("Bearer hf_secret")).count()
    };
    assert!(with(&hub) >= 3, "the hub's own host sees the token");
    assert_eq!(with(&files), 0, "no other host does");
    assert!(files.requests.lock().unwrap().iter().all(|r| r.header("authorization").is_none()));
    assert!(files.requests.lock().unwrap().iter().all(|r| r.header("accept-encoding") == Some("identity")));
}

#[test]
fn headers_are_kept_by_entity_tag() {
    let directory = tempfile::tempdir().unwrap();
    let tag = Arc::new(Mutex::new("\"one\"".to_string()));
    let current = tag.clone();
    let server = Server::new(move |request| Answer::range(request, &model(), &current.lock().unwrap()));
    let kept = || Client::new(limits(), Some(directory.path().into()), "http://127.0.0.1:9", None).unwrap();
    let url = server.url("/m.gguf");
    is_model(&open(&kept(), &url));

    let again = kept();
    is_model(&open(&again, &url));
    assert_eq!(again.moved(), 0, "304 carries nothing");

    *tag.lock().unwrap() = "\"two\"".to_string();
    let changed = kept();
    is_model(&open(&changed, &url));
    assert!(changed.moved() >= header_bytes(), "another tag is another file");

    let mut offline = kept();
    offline.offline = true;
    let before = server.paths().len();
    is_model(&open(&offline, &url));
    assert!(matches!(failure(open(&offline, &server.url("/other.gguf"))).0, Failure::Offline));
    assert_eq!(server.paths().len(), before, "offline asks nobody");
}

#[test]
fn a_damaged_cache_entry_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::of_files(vec![("/m.gguf".into(), model())]);
    let kept = || Client::new(limits(), Some(directory.path().into()), "http://127.0.0.1:9", None).unwrap();
    is_model(&open(&kept(), &server.url("/m.gguf")));
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    let client = kept();
    is_model(&open(&client, &server.url("/m.gguf")));
    assert!(client.moved() >= header_bytes());
}
