import Database from 'libsql';

/**
 * Lines lie in blocks, as they came: a row for each line takes ten times as long
 * (`npm run bench`) and holds no more. That every line is there once, and none is missed, is the table's own affair: its key is
 * the log and the first line's number, and a block that does not follow the last one is refused,
 * whatever the code above believes.
 */
const schema = `
CREATE TABLE IF NOT EXISTS workers (
  id            INTEGER PRIMARY KEY,
  uid           TEXT NOT NULL UNIQUE,
  namespace     TEXT NOT NULL,
  name          TEXT NOT NULL,
  task_id       TEXT NOT NULL,
  pool          TEXT NOT NULL,
  event_id      TEXT NOT NULL,
  traceparent   TEXT NOT NULL,
  metadata      TEXT NOT NULL,              -- JSON
  registered_ms INTEGER NOT NULL,
  finished_ms   INTEGER,
  reason        TEXT NOT NULL DEFAULT '',
  message       TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE TABLE IF NOT EXISTS container_ends (
  worker        INTEGER NOT NULL REFERENCES workers ON DELETE CASCADE,
  container     TEXT NOT NULL,
  restart_count INTEGER NOT NULL,
  exit_code     INTEGER,                    -- NULL: it never ran, or nobody saw it end
  signal        INTEGER NOT NULL,
  reason        TEXT NOT NULL,
  message       TEXT NOT NULL,
  started_ms    INTEGER,
  finished_ms   INTEGER,
  PRIMARY KEY (worker, container)
) STRICT;

CREATE TABLE IF NOT EXISTS logs (
  id            INTEGER PRIMARY KEY,
  worker        INTEGER NOT NULL REFERENCES workers ON DELETE CASCADE,
  container     TEXT NOT NULL,
  restart_count INTEGER NOT NULL,
  init          INTEGER NOT NULL,
  -- What is stored, counted by this server.
  lines         INTEGER NOT NULL DEFAULT 0,
  bytes         INTEGER NOT NULL DEFAULT 0,
  gaps          INTEGER NOT NULL DEFAULT 0,
  checksum      BLOB NOT NULL DEFAULT x'0000000000000000',
  -- The end of the last batch, as the relay sent it; its sequence is lines.
  end_seconds   INTEGER,
  end_nanos     INTEGER,
  end_lines_in_second INTEGER NOT NULL DEFAULT 0,
  end_bytes     INTEGER NOT NULL DEFAULT 0,
  end_checksum  BLOB NOT NULL DEFAULT x'',
  end_gaps      INTEGER NOT NULL DEFAULT 0,
  -- 1 once the relay has called the log complete, and how that compares.
  complete      INTEGER NOT NULL DEFAULT 0,
  matches       INTEGER NOT NULL DEFAULT 0,
  mismatch      TEXT NOT NULL DEFAULT '',
  UNIQUE (worker, container, restart_count)
) STRICT;

CREATE TABLE IF NOT EXISTS blocks (
  log           INTEGER NOT NULL REFERENCES logs ON DELETE CASCADE,
  first         INTEGER NOT NULL,           -- number of the first line
  count         INTEGER NOT NULL CHECK (count > 0),
  seconds       INTEGER NOT NULL,           -- time of the first line
  nanos         INTEGER NOT NULL,
  lengths       BLOB NOT NULL CHECK (length(lengths) = 4 * count),  -- little-endian, of 32 bits
  deltas        BLOB NOT NULL CHECK (length(deltas) = 4 * count),   -- the same: nanoseconds since the line before
  streams       BLOB CHECK (length(streams) = count),               -- a byte for each; NULL: nobody knows
  gap           TEXT,                       -- JSON: this line is a gap
  data          BLOB NOT NULL,              -- the lines, each ended by a line feed
  PRIMARY KEY (log, first)
) STRICT;

CREATE TRIGGER IF NOT EXISTS blocks_follow_each_other BEFORE INSERT ON blocks
WHEN new.first <> coalesce((SELECT first + count FROM blocks WHERE log = new.log ORDER BY first DESC LIMIT 1), 1)
BEGIN
  SELECT RAISE(ABORT, 'the block does not follow the last one of its log');
END;

CREATE TRIGGER IF NOT EXISTS blocks_are_final BEFORE UPDATE ON blocks
BEGIN
  SELECT RAISE(ABORT, 'stored lines do not change');
END;
`;

const version = 1;

/** Opens the database for writing, and makes it if it is not there. */
export function openForWriting(file: string): Database.Database {
  const db = new Database(file);
  // Blocks are tens of kilobytes; small pages would make long chains of them. It has to come first.
  db.pragma('page_size = 16384');
  db.pragma('journal_mode = WAL');
  // What is acknowledged has reached the disk: a power failure loses nothing either.
  db.pragma('synchronous = FULL');
  db.pragma('foreign_keys = ON');
  db.pragma('busy_timeout = 1000');
  db.pragma('journal_size_limit = 67108864');
  const [found] = db.prepare('PRAGMA user_version').raw().get() as [number];
  if (found !== 0 && found !== version) {
    throw new Error(`${file} was written by another version of this server (schema ${found}, not ${version})`);
  }
  db.exec(schema);
  db.pragma(`user_version = ${version}`);
  return db;
}

/** Opens the database for reading, beside the writer. */
export function openForReading(file: string): Database.Database {
  const db = new Database(file);
  db.pragma('query_only = ON');
  db.pragma('busy_timeout = 5000');
  return db;
}

/**
 * Keeps a second server out of a folder: two of them would each believe to know where a log ends.
 * The lock is SQLite's own, which a killed process leaves open.
 */
export function lockFolder(file: string): Database.Database {
  let db;
  try {
    db = new Database(file);
  } catch (error) {
    throw new Error(`user ${process.getuid?.()} cannot make ${file}: may they write there? ${String(error)}`);
  }
  try {
    db.exec('BEGIN EXCLUSIVE');
  } catch (error) {
    db.close();
    throw new Error(`another server works in this folder: ${String(error)}`);
  }
  return db;
}
