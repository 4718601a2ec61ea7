import { SignJWT, jwtVerify } from "jose";

const secret = new TextEncoder().encode(process.env.JWT_SECRET);
const [algorithm, issuer, audience] = ["HS256", "https://app.example.com", "app"];

export const jwt = {
  async encode({ token, maxAge }) {
    const claims = new SignJWT(token).setProtectedHeader({ alg: algorithm, typ: "JWT" });
    return claims.setIssuer(issuer).setAudience(audience).setIssuedAt().setExpirationTime(`${maxAge}s`).sign(secret);
  },
  async decode({ token }) {
    const { payload } = await jwtVerify(token, secret, { algorithms: [algorithm], issuer, audience });
    return payload;
  },
};
