// What a provider remembers while it runs: everything. The adapter that comes with oidc-provider forgets whatever it has not read for
// a thousand writes, so that sessions of two hundred people would end with `invalid_grant`.

import { now } from "./lines.js";

export class Memory {
  static kept = new Map();
  static grants = new Map();

  constructor(model) {
    this.model = model;
  }

  key(id) {
    return `${this.model}:${id}`;
  }

  async upsert(id, payload) {
    const key = this.key(id);
    Memory.kept.set(key, payload);
    if (payload.uid) Memory.kept.set(this.key(`uid:${payload.uid}`), payload);
    if (!payload.grantId) return;
    const members = Memory.grants.get(payload.grantId) ?? new Set();
    Memory.grants.set(payload.grantId, members.add(key));
  }

  async find(id) {
    return Memory.kept.get(this.key(id));
  }

  async findByUid(uid) {
    return this.find(`uid:${uid}`);
  }

  async consume(id) {
    (await this.find(id)).consumed = now();
  }

  async destroy(id) {
    const uid = (await this.find(id))?.uid;
    Memory.kept.delete(this.key(id));
    if (uid) Memory.kept.delete(this.key(`uid:${uid}`));
  }

  async revokeByGrantId(grantId) {
    for (const key of Memory.grants.get(grantId) ?? []) Memory.kept.delete(key);
    Memory.grants.delete(grantId);
  }
}
