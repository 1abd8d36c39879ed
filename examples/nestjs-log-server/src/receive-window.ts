import http2 from 'node:http2';

/**
 * Widens the window in which clients may send without hearing back. HTTP/2 begins with 64 KiB for a
 * stream and for a connection, and grpc-js has no option for its servers
 * (https://github.com/grpc/grpc-node/issues/3058), so throughput would be 64 KiB for each round
 * trip, whatever the machines: 3,700 lines/s at 30 ms. It must run before a server is made.
 */
export function widenReceiveWindow(streamBytes = 4 * 1024 * 1024, connectionBytes = 8 * 1024 * 1024): void {
  type Make = (options?: { settings?: http2.Settings }, ...rest: never[]) => http2.Http2Server;
  const wrap = (make: Make): Make => (options, ...rest) => {
    const server = make({ ...options, settings: { ...options?.settings, initialWindowSize: streamBytes } }, ...rest);
    server.on('session', (session) => session.setLocalWindowSize(connectionBytes));
    return server;
  };
  http2.createServer = wrap(http2.createServer as Make) as typeof http2.createServer;
  http2.createSecureServer = wrap(http2.createSecureServer as unknown as Make) as unknown as typeof http2.createSecureServer;
}
