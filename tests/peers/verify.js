// Verifies a token with jose, as an application would that is told where the keys are.
//
// {"keys": URL, "token", "algorithm", "issuer", "audience", "typ"?} → {"by": {"jose": {"subject"} or {"refused"}}}

import * as jose from "jose";
import { answer } from "./lines.js";

answer(async ({ keys, token, algorithm, issuer, audience, typ }) => {
  try {
    const options = { algorithms: [algorithm], issuer, audience, ...(typ && { typ }), requiredClaims: ["sub", "iat", "jti"] };
    const { payload } = await jose.jwtVerify(token, jose.createRemoteJWKSet(new URL(keys)), options);
    return { by: { jose: { subject: payload.sub } } };
  } catch (error) {
    return { by: { jose: { refused: error.code } } };
  }
});
