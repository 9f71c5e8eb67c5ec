#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace slicellm {

using TaskId = int64_t;
constexpr TaskId kNoTask = -1;

// One task's share of a step: `count` tokens of the flat batch, computed on top of `past` tokens
// whose K and V are already in the cache. count == 1 for a decode row, > 1 for most prefill chunks.
// Padding is a sequence of kNoTask: computed like any other, its logits too where `sample` is set,
// but over KV blocks whose contents mean nothing, and no token is drawn from it.
// A chained sequence ends in the token that the step before draws for its task, which the host does
// not know yet: what stands for it in Batch::tokens is no more than a valid id.
// Drafts are guesses that end a sampled sequence: each counts if it is what the logits of the token
// before it give. No step of the task is submitted until their fate is known.
struct BatchSequence {
  TaskId task = 0;
  int32_t begin = 0;            // first token in Batch::tokens
  int32_t count = 0;            // number of tokens
  int32_t past = 0;             // tokens already in KV; token i sits at position past + i
  int32_t prompt_len = 0;       // original prompt length (kept over recompute; ChatGLM-6B needs it)
  bool sample = false;          // the last token's logits give the next token
  bool chained = false;         // the last token is still to be drawn
  int32_t drawn = 0;            // where it will be in Batch::drawn, if that is set
  int32_t drafts = 0;           // the last tokens that are drafts
  std::vector<int32_t> blocks;  // block table, covers past + count tokens
};

// Moves one KV block between the device pool and the executor's host pool, before the step runs.
struct KvCopy {
  bool to_host = false;
  int32_t device_block = 0;
  int32_t host_block = 0;
};

// One step as every layer sees it: one flat token batch, so that each weight matrix is read once
// per step whatever mix of prefill chunks and decode rows it holds.
struct Batch {
  std::vector<int32_t> tokens;  // [n] token ids
  std::vector<BatchSequence> sequences;
  std::vector<KvCopy> copies;  // in order
  // Set by an executor whose device draws the tokens: device memory in which those of chained
  // sequences are by the time that the step's first op runs.
  const int32_t* drawn = nullptr;
};

// Whether every sequence is one token: decode rows and padding.
inline bool is_decode_step(const Batch& batch) {
  return batch.tokens.size() == batch.sequences.size();
}

// The guessed tokens of a sequence of `batch`.
inline std::span<const int32_t> drafts_of(const Batch& batch, const BatchSequence& sequence) {
  const int32_t end = sequence.begin + sequence.count;
  return std::span(batch.tokens)
      .subspan(static_cast<size_t>(end - sequence.drafts), static_cast<size_t>(sequence.drafts));
}

}  // namespace slicellm
