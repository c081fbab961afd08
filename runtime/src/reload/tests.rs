use super::*;
use std::{
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};
use tokio::{task::JoinHandle, time::timeout};

/// More than any of this takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// Often: the tests write files and wait for what comes of it.
const OFTEN: Duration = Duration::from_millis(5);

/// `word` and `file`, which names another one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Words(String, String);

impl Words {
    fn read(document: Document) -> Result<Self, Mistakes> {
        let mut root = document.root();
        let word = root.required::<String>("word");
        let file: Option<PathBuf> = root.get("file");
        let text = match file.map(|file| root.text_file(&file)) {
            None => Some(String::new()),
            Some(Ok(text)) => Some(text),
            Some(Err(error)) => {
                root.mistake("file", error.to_string());
                None
            }
        };
        drop(root);
        document.finish_with(word.zip(text).map(|(word, text)| Self(word, text)))
    }
}

/// Remembers what it was given; refuses the word `no`.
#[derive(Default)]
struct Taker(Mutex<Vec<Words>>, Notify);

impl Reload for Taker {
    type Config = Words;

    fn read(document: Document) -> Result<Words, Mistakes> {
        Words::read(document)
    }

    async fn take(&self, config: Words) -> Result<Vec<&'static str>, Refused> {
        if config.0 == "no" {
            return Err("not this one".to_owned());
        }
        let waiting = if config.0 == "later" { vec!["word"] } else { Vec::new() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(config);
        self.1.notify_one();
        Ok(waiting)
    }
}

struct World {
    dir: tempfile::TempDir,
    taker: Arc<Taker>,
    asked: Arc<Notify>,
    metrics: ReloadMetrics,
    registry: Registry,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl World {
    fn start(text: &str, every: Duration) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("c.yaml");
        fs::write(&file, text.replace("DIR", &dir.path().display().to_string())).expect("writes");
        Self::with(dir, every)
    }

    fn with(dir: tempfile::TempDir, every: Duration) -> Self {
        let (taker, asked, stop) = (Arc::<Taker>::default(), Arc::<Notify>::default(), CancellationToken::new());
        let mut registry = Registry::default();
        let (_, source) = Source::read(&dir.path().join("c.yaml"), Words::read).expect("a configuration");
        let source = source.every(every).when(Arc::clone(&asked)).counted(&mut registry);
        let metrics = source.metrics.clone();
        let task = tokio::spawn(source.follow(Arc::clone(&taker), stop.clone()));
        Self { dir, taker, asked, metrics, registry, stop, task }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, text: &str) {
        self.replace("c.yaml", text);
    }

    /// At once: nothing sees a part of it.
    fn replace(&self, name: &str, text: &str) {
        fs::write(self.path("new"), text.replace("DIR", &self.dir.path().display().to_string())).expect("writes");
        fs::rename(self.path("new"), self.path(name)).expect("renames");
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.metrics.counted(outcome)
    }

    /// Waits for the count.
    async fn counts(&self, outcome: Outcome, wanted: u64) {
        let counted = async {
            while self.count(outcome) < wanted {
                tokio::task::yield_now().await;
                sleep(OFTEN).await;
            }
        };
        timeout(PATIENCE, counted).await.expect("counted in time");
        assert_eq!(self.count(outcome), wanted);
    }

    fn taken(&self) -> Vec<Words> {
        self.taker.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn takes(&self, word: &str, text: &str) {
        timeout(PATIENCE, self.taker.1.notified()).await.expect("taken in time");
        assert_eq!(self.taken().last(), Some(&Words(word.into(), text.into())));
    }

    fn shows(&self, line: &str) -> bool {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("encodes");
        text.lines().any(|found| found == line)
    }

    async fn ends(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("ends").expect("without a panic");
    }
}

#[tokio::test]
async fn a_change_is_read_however_it_is_written() {
    let world = World::start("word: one", OFTEN);
    fs::write(world.path("c.yaml"), "word: two").expect("writes");
    world.takes("two", "").await;
    world.write("word: three");
    world.takes("three", "").await;
    // Taken away and written anew: at worst it is refused meanwhile.
    fs::remove_file(world.path("c.yaml")).expect("removes");
    world.write("word: four");
    world.takes("four", "").await;
    world.ends().await;
}

#[tokio::test]
async fn a_volume_of_kubernetes_is_followed_through_its_links() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    for (version, word) in [("..1", "one"), ("..2", "two")] {
        fs::create_dir(path(version)).expect("a directory");
        fs::write(path(version).join("c.yaml"), format!("word: {word}")).expect("writes");
    }
    symlink("..1", path("..data")).expect("a link");
    symlink("..data/c.yaml", path("c.yaml")).expect("a link");
    let world = World::with(dir, OFTEN);
    symlink("..2", world.path("..data_tmp")).expect("a link");
    fs::rename(world.path("..data_tmp"), world.path("..data")).expect("renames");
    world.takes("two", "").await;
    assert_eq!(world.count(Outcome::Refused), 0);
    world.ends().await;
}

#[tokio::test]
async fn a_bad_one_is_refused_once_and_the_next_good_one_is_taken() {
    let world = World::start("word: one", OFTEN);
    assert!(world.shows("podbay_config_last_reload_successful 1"));
    assert!(world.shows("podbay_config_reloads_total{result=\"refused\"} 0"));
    world.write("word: [");
    world.counts(Outcome::Refused, 1).await;
    assert!(world.shows("podbay_config_last_reload_successful 0"));
    world.write("wrod: two");
    world.counts(Outcome::Refused, 2).await;
    world.write("word: no");
    world.counts(Outcome::Refused, 3).await;
    assert_eq!(world.taken(), []);
    // What is back to what counts anyway is not taken again.
    world.write("word: one");
    world.counts(Outcome::Unchanged, 1).await;
    assert!(world.shows("podbay_config_last_reload_successful 1"));
    world.write("word: later");
    world.takes("later", "").await;
    world.counts(Outcome::Ok, 1).await;
    assert!(world.shows("podbay_config_keys_waiting_for_restart 1"));
    // Each was read once: nothing goes on trying what stays bad.
    assert_eq!(world.count(Outcome::Refused), 3);
    world.ends().await;
}

#[tokio::test]
async fn files_that_it_names_belong_to_it() {
    let world = World::start("word: one", OFTEN);
    // One that is not there is waited for.
    world.write("{word: two, file: DIR/named}");
    world.counts(Outcome::Refused, 1).await;
    world.replace("named", "first");
    world.takes("two", "first").await;
    world.replace("named", "second");
    world.takes("two", "second").await;
    // What it names no more is nobody's.
    world.write("word: three");
    world.takes("three", "").await;
    fs::remove_file(world.path("named")).expect("removes");
    world.asked.notify_one();
    world.counts(Outcome::Unchanged, 1).await;
    assert_eq!((world.count(Outcome::Ok), world.count(Outcome::Refused)), (3, 1));
    world.ends().await;
}

#[tokio::test]
async fn without_an_interval_it_is_read_when_asked() {
    let world = World::start("word: one", Duration::ZERO);
    world.asked.notify_one();
    world.counts(Outcome::Unchanged, 1).await;
    world.write("word: [");
    world.asked.notify_one();
    world.counts(Outcome::Refused, 1).await;
    // Asked again, it tries again.
    world.asked.notify_one();
    world.counts(Outcome::Refused, 2).await;
    world.write("word: two");
    world.asked.notify_one();
    world.takes("two", "").await;
    world.ends().await;
}

#[test]
fn what_is_no_regular_file_is_not_looked_at_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("runs").success());
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::write(pipe, "word: one").expect("writes")
    });
    let (words, source) = Source::read(&pipe, Words::read).expect("a configuration");
    writer.join().expect("no panic");
    assert!(words == Words("one".into(), String::new()) && !source.regular);
    // One that is being replaced at this moment is.
    fs::write(dir.path().join("c.yaml"), "word: one").expect("writes");
    let gone = Source::read(&dir.path().join("c.yaml"), |document| {
        fs::remove_file(dir.path().join("c.yaml")).expect("removes");
        Words::read(document)
    });
    assert!(gone.expect("a configuration").1.regular);
}

#[test]
fn an_interval_is_none_or_long_enough() {
    assert_eq!(interval("0"), Ok(Duration::ZERO));
    assert_eq!(interval("1.5s"), Ok(Duration::from_millis(1500)));
    assert!(interval("99ms").is_err() && interval("5").is_err() && interval("").is_err());
}
