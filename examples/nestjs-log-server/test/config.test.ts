import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Config } from '../src/config.js';

test('without an environment the server listens on loopback alone', () => {
  const config = new Config({});
  assert.deepEqual(config.listen, { host: '127.0.0.1', port: 50051 });
  assert.deepEqual(config.httpListen, { host: '127.0.0.1', port: 8080 });
  assert.deepEqual(config.warnings(), []);
});

test('every problem of a configuration is told at once', () => {
  const wrong = { LISTEN: 'nowhere', HTTP_LISTEN: ':99999', RETENTION: 'a week', TLS_KEY_FILE: '/does/not/exist', WINDOW_BATCHES: '-1' };
  assert.throws(() => new Config(wrong), (error: Error) => {
    for (const name of Object.keys(wrong)) {
      assert.match(error.message, new RegExp(name));
    }
    assert.ok(!error.message.includes('\n'));
    return true;
  });
});

test('a port without a host is every address, and a page there is warned of', () => {
  const config = new Config({ LISTEN: ':50051', HTTP_LISTEN: '[::1]:80', RETENTION: '2d' });
  assert.deepEqual(config.listen, { host: '::', port: 50051 });
  assert.deepEqual(config.httpListen, { host: '::1', port: 80 });
  assert.equal(config.retentionMs, 172_800_000);
  assert.equal(new Config({ HTTP_LISTEN: ':8080' }).warnings().length, 1);
  assert.equal(new Config({ HTTP_LISTEN: 'off' }).httpListen, undefined);
});

test('a wrong configuration ends the program with status 2 and one line', () => {
  const program = fileURLToPath(new URL('../src/main.js', import.meta.url));
  const { status, stderr } = spawnSync(process.execPath, [program], { env: { LISTEN: 'nowhere' }, encoding: 'utf8' });
  assert.equal(status, 2);
  assert.match(stderr, /^nestjs-log-server: LISTEN is "nowhere", want .*\n$/);
});
