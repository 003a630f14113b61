// Portkey 1.15.2 on Node 20 and 22 answers 500 to every stream: it writes to the headers of the provider's response,
// which `fetch` has frozen. Swallowing that one error lets its streams through, so that they can be measured.
for (const name of ['append', 'set', 'delete']) {
  const original = Headers.prototype[name];
  Headers.prototype[name] = function (...given) {
    try {
      return original.apply(this, given);
    } catch (error) {
      if (!(error instanceof TypeError && error.message === 'immutable')) throw error;
    }
  };
}

// And it has no option to listen on loopback only.
const { default: net } = await import('node:net');
const { listen } = net.Server.prototype;
net.Server.prototype.listen = function (port, ...rest) {
  return listen.call(this, port, '127.0.0.1', ...rest.filter((given) => typeof given === 'function'));
};
