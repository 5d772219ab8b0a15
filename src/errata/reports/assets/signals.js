"use strict";
/* The recorded attempts, and what can be read of each of their tokens. */
(() => {
  const { data } = errata;

  const DIVERGENCE = {
    forward_ce: "forward KL from teacher to student (the cross-entropy less the teacher's own entropy)",
    forward_kl: "forward KL from teacher to student",
    reverse_kl: "reverse KL from student to teacher",
    js: "Jensen–Shannon divergence",
  };

  /* How to read each signal from a row, and its explanation. `look` is the colour scale: mark (disagreement), weight, or sign (above or below 0). */
  const SIGNALS = [
    { key: "disagreement", name: "disagreement", unit: "nats", look: "mark", of: disagreement, needs: ["divergence"],
      about: (row) => `How far the student's next-token distribution is from the teacher's, in nats: ${DIVERGENCE[kindOf(row)] || "the method's divergence"}. 0: they agree.` },
    { key: "gap", name: "gap to the teacher", unit: "nats", look: "sign", of: (s, t) => less(at(s.teacher_logp, t), at(s.student_logp, t)), needs: ["teacher_logp", "student_logp"],
      about: "Teacher's less student's log-probability of this token. Below 0 (orange) the teacher finds it less likely than the student did; above 0 (blue) more likely." },
    { key: "future_credit", name: "future credit", unit: "nats", look: "mark",
      about: "The future cost: the disagreement after this token. It is high for a token that leads to disagreement later, even if the teacher agrees with the token itself." },
    { key: "advantage", name: "advantage", look: "sign",
      about: "The factor of this token's log-prob gradient in the policy-gradient stream. Blue: the token becomes more likely. Orange: less likely." },
    { key: "rl_weight", name: (rows) => `${streamName(rows)} weight`, look: "weight",
      about: (row) => `This token's weight in the policy-gradient stream, which carries the ${streamName([row])} of this method. 0: not part of it.` },
    { key: "sd_weight", name: "distillation weight", look: "weight", about: "This token's weight in the distillation stream. 0: not part of it." },
    { key: "rhythm", name: "rhythm", look: "weight", base: 1, about: "The factor M_t of a solved rollout's token. Above 1: the student is surer of the token than the teacher, where the gate is above 0." },
    { key: "rhythm_gate", name: "rhythm gate", look: "weight", about: "The gate of this token, from 0 to 1. It is above 0 where the teacher's entropy has just fallen and the student's has not." },
    { key: "surprise", name: "student's surprise", unit: "nats", look: "mark", of: (s, t) => less(0, at(s.student_logp, t)), needs: ["student_logp"],
      about: "Minus the student's log-probability of the token it sampled, in nats." },
    { key: "student_entropy", name: "student's entropy", unit: "nats", look: "mark", about: "Entropy of the student's next-token distribution before this token, in nats." },
    { key: "teacher_entropy", name: "teacher's entropy", unit: "nats", look: "mark", about: "Entropy of the teacher's next-token distribution before this token, in nats." },
  ];
  const READ = new Set(["student_logp", "teacher_logp", "divergence", ...SIGNALS.map((s) => s.key)]);

  const RATE = "The ledger's smoothed pass rate of the problem; for a method without a ledger, the share of its group that was solved.";
  const SPECIAL = /^<[|｜].*[|｜]>$|^<\/?s>$/;

  /* What the policy-gradient stream of a method carries: the reward, or in DistIL the future credit. */
  function streamName(rows) {
    const credit = rows.filter((row) => row.signals.future_credit !== undefined).length;
    return credit === 0 ? "reward" : credit === rows.filter((row) => row.signals.rl_weight !== undefined).length ? "future-credit" : "policy-gradient";
  }

  function at(values, t) {
    return Array.isArray(values) ? values[t] : values;
  }
  function less(a, b) {
    return a === null || b === null || a === undefined || b === undefined ? null : a - b;
  }
  function kindOf(row) {
    return errata.data.runs[row.run].divergence;
  }
  function disagreement(s, t, row) {
    const value = at(s.divergence, t);
    if (kindOf(row) !== "forward_ce" || s.teacher_entropy === undefined || value === null) return value;
    return Math.max(less(value, at(s.teacher_entropy, t)), 0);
  }
  function has(signal, row) {
    return (signal.needs || [signal.key]).every((key) => row.signals[key] !== undefined);
  }
  /* The signal's value at a token; null where there is none, as at tokens that are not the student's. */
  function valueOf(signal, row, t) {
    if (row.notOwn.has(t)) return null;
    const value = signal.of ? signal.of(row.signals, t, row) : at(row.signals[signal.key], t);
    return value === undefined ? null : value;
  }
  function valuesOf(signal, row) {
    return has(signal, row) ? row.tokens.map((_, t) => valueOf(signal, row, t)) : [];
  }
  function top(sizes) {
    sizes.sort((a, b) => a - b);
    return sizes[Math.floor(0.98 * (sizes.length - 1))] || sizes.at(-1) || 0;
  }
  /* Where the colour scale ends: at the 98th percentile of the attempt's tokens, or of all attempts' tokens, so one outlier does not fade the rest. */
  const scales = new Map();
  function scaleOf(signal, row) {
    const key = row === null ? signal.key : `${signal.key} ${rows.indexOf(row)}`;
    if (!scales.has(key)) {
      const sizes = [];
      for (const one of row === null ? rows : [row]) for (const value of valuesOf(signal, one)) if (value !== null) sizes.push(Math.abs(value - (signal.base || 0)));
      scales.set(key, top(sizes));
    }
    return scales.get(key);
  }

  /* Control characters as they would be typed; a line break also breaks the line. */
  function visible(token) {
    if (token === "") return "·";
    return token.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`)
      .replace(/\n/g, "↵\n").replace(/\t/g, "→\t");
  }
  function quoted(token) {
    return visible(token).replace(/\n|\t/g, "") || "·";
  }
  function verdictOf(row) {
    if (row.reward === null || row.reward === undefined) return ["unjudged", "not judged"];
    const word = row.solved ? "right" : "wrong";
    return [word, row.reward === 0 || row.reward === 1 ? word : `reward ${errata.number(row.reward)}`];
  }
  function difficultyOf(row) {
    if (row.rate === null || row.rate === undefined) return "unknown";
    return row.rate < 0.3 ? "hard" : row.rate > 0.7 ? "easy" : "medium";
  }
  /* The teacher's token, if it gives another token more than half of the probability. */
  function correction(row, t) {
    const best = row.notOwn.has(t) ? null : row.alternatives?.[t]?.[0];
    return best && best[1] > 0.5 && best[0] !== row.tokens[t] ? best[0] : null;
  }
  function positionOf(row, t) {
    return row.gap && t >= row.gap[0] ? t + row.gap[1] : t;
  }

  /* The attempt's turns: runs of the student's own tokens, and what came between them. */
  function partsOf(row) {
    const parts = [];
    row.tokens.forEach((_, t) => {
      const own = !row.notOwn.has(t), last = parts.at(-1);
      if (last && last.own === own) last.to = t + 1;
      else parts.push({ own, from: t, to: t + 1 });
    });
    const messages = row.turns || [];
    let place = -1, turn = 0;
    for (const part of parts) {
      if (part.own) {
        const next = messages.findIndex(([role], i) => i > place && role === "assistant");
        part.calls = next < 0 ? [] : messages[next][2];
        place = next < 0 ? place : next;
        part.turn = turn++;
        part.feedback = row.turn_feedback?.[part.turn] || "";
        part.hindsight = row.by_turn?.[part.turn] || "";
      } else {
        const others = [];
        for (let i = place + 1; i < messages.length && messages[i][0] !== "assistant"; i++) others.push(messages[i]);
        part.from_whom = others.map(([role, name]) => (role === "tool" ? `tool output${name ? ` · ${name}` : ""}` : role)).join(", ") || "not the student's";
      }
    }
    const own = parts.filter((part) => part.own);
    for (const part of own) part.title = own.length < 2 ? "" : part === own.at(-1) && !part.calls.length ? "The answer" : `Turn ${part.turn + 1}${part.calls.length ? ` · calls ${part.calls.join(", ")}` : ""}`;
    return parts;
  }

  /* Every attempt on its own: siblings were stored with the first recorded attempt of their group. */
  function expand(packed) {
    const found = [];
    for (const one of packed) {
      const { siblings = [], ...row } = one;
      found.push(row, ...siblings.map((other) => ({ rate: row.rate, problem: row.problem, prompt: row.prompt, step: row.step, run: row.run, split: row.split, context: {}, signals: {}, ...other })));
    }
    for (const row of found) {
      row.notOwn = new Set(row.given || []);
      row.split = row.split || "training";
      row.group = `${row.run} ${row.split} ${row.step} ${row.problem}`;
    }
    return found;
  }

  let rows = [], signals = [];
  function read() {
    rows = expand(errata.data.attempts);
    scales.clear();
    const known = new Set(SIGNALS.map((s) => s.key));
    for (const key of new Set(rows.flatMap((row) => Object.keys(row.signals)))) {
      if (!READ.has(key) && !known.has(key)) SIGNALS.push({ key, name: key.replaceAll("_", " "), look: "sign", about: "Recorded by the method." });
    }
    signals = SIGNALS.filter((s) => rows.some((row) => has(s, row)));
  }
  read();
  errata.attempts = {
    get rows() { return rows; },
    get signals() { return signals; },
    read, has, at, valueOf, valuesOf, scaleOf, visible, quoted, verdictOf, difficultyOf, correction, positionOf, partsOf, RATE, SPECIAL,
    nameOf: (signal, row) => (typeof signal.name === "function" ? signal.name(row ? [row] : rows) : signal.name),
    aboutOf: (signal, row) => (typeof signal.about === "function" ? signal.about(row) : signal.about),
  };
})();
