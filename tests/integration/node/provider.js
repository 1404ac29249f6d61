// A real identity provider on loopback. Reads its private keys from stdin, one JWK set a line: each line is a rotation,
// the first key of RS256 signs. Prints "ready" after each.
const http = require("http");
const readline = require("readline");

const [port] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
const DEVICE = "urn:ietf:params:oauth:grant-type:device_code";

const none = { redirect_uris: [], response_types: [] };
const clients = [
  { client_id: "ci", client_secret: "ci's own secret: + % &", grant_types: ["client_credentials"], ...none },
  { client_id: "chat", client_secret: "chat-secret", grant_types: ["client_credentials"], ...none },
  {
    client_id: "cli", token_endpoint_auth_method: "none", application_type: "native",
    grant_types: [DEVICE, "refresh_token"], ...none,
  },
];

function configuration(jwks) {
  return {
    clients,
    jwks,
    scopes: ["openid", "offline_access"],
    cookies: { keys: ["a key of the tests"] },
    ttl: { ClientCredentials: 600, AccessToken: seconds("ACCESS_TOKEN_S"), RefreshToken: 3600 },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    issueRefreshToken: () => true,
    features: {
      clientCredentials: { enabled: true },
      deviceFlow: { enabled: true },
      devInteractions: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => "urn:agentruntime",
        useGrantedResource: () => true,
        getResourceServerInfo: (_, resource) => ({
          // The audience is the last part of the resource's name.
          audience: resource.split(":").pop(),
          scope: "uapi.call uapi.call:alpha uapi.call:beta uapi.operate uapi.operate:alpha uapi.administer",
          accessTokenFormat: "jwt",
          jwt: { sign: { alg: "RS256" } },
        }),
      },
    },
  };
}

function seconds(variable) {
  return Number(process.env[variable] || 600);
}

import("oidc-provider").then(({ Provider }) => {
  let handle = null;
  const server = http.createServer((request, response) => handle(request, response));
  readline.createInterface({ input: process.stdin }).on("line", (line) => {
    const provider = new Provider(issuer, configuration(JSON.parse(line)));
    provider.on("server_error", (_, error) => console.error(error));
    const first = handle === null;
    handle = provider.callback();
    if (first) server.listen(port, "127.0.0.1", () => console.log("ready"));
    else console.log("ready");
  }).on("close", () => process.exit(0));
});
