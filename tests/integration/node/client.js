// Calls an agent with stubs that @grpc/proto-loader makes of our protos; prints what came as JSON.
const path = require("path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, agent, prompt] = process.argv.slice(2);
const protos = path.join(__dirname, "..", "..", "..", "protos");
const definition = loader.loadSync("uapi/v1/text_generation.proto", { includeDirs: [protos], keepCase: true });
const { TextGenerationService } = grpc.loadPackageDefinition(definition).uapi.v1;

const client = new TextGenerationService(address, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
metadata.set("x-uapi-agent", agent);
const options = { deadline: Date.now() + 20000 };

client.GenerateText({ prompt }, metadata, options, (error, whole) => {
  if (error) {
    console.log(JSON.stringify({ code: error.code, details: error.details }));
    return client.close();
  }
  const pieces = [];
  const stream = client.StreamText({ prompt }, metadata, options);
  stream.on("data", (piece) => pieces.push(piece.text));
  stream.on("error", (failure) => console.log(JSON.stringify({ code: failure.code })));
  stream.on("end", () => {
    console.log(JSON.stringify({ text: whole.text, tokens_used: whole.tokens_used, pieces }));
    client.close();
  });
});
