#pragma once

#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include "policy/length_belief.h"
#include "policy/pace_demand.h"
#include "policy/parameters.h"
#include "policy/step_builder.h"

namespace slicellm {

// pace: ours. Who is served is decided by value density under a demand test, who runs next by the
// time at which the next token is due.
//
//  * Value. A task is worth U times the Gittins index of its class's learned length distribution,
//    its prefill counted in tokens: expected utility per token of work.
//  * Admission. In order of value, a task is admitted if the work that is due by each of a row of
//    moments ahead, its own included, still fits in a share of the time until then, beside what
//    arrivals of more value are expected to need. The share is learned: an admitted task that
//    misses lowers it, one that makes it raises it.
//  * Relegation. What can no longer make it keeps its KV while there is room and runs only when
//    nothing else can. A task that could not make it even alone runs after these; while any other
//    is live, nothing is different for its being there.
//  * Steps. Rows whose token would be late if they waited for the next step or the first prompt, in
//    the batch with the least time a token that lets every admitted task keep its due times. Then
//    prompts, one after the other, in the smallest pieces that cost little more than the whole,
//    where the rows' slack allows it, or where waiting loses more than the rows do. If none joins,
//    rows run ahead where they cost no more than they ever will. Rows with only a deadline do not
//    wait for rows worth much less, and nothing waits for what is worth far less.
//
// Token k of a task with TPOT is due 0.95 k * TPOT after its first token: it may end at any of
// them, and a lead builds up. The tokens of a task with a deadline are due evenly over 0.6 of it,
// for the length that nine in ten of its class do not exceed.
class Pace : public Policy {
 public:
  explicit Pace(const Parameters& p)
      : learns_(p.number("share", 0, 2) == 0), share_(p.number("share", 0, 2)) {}

  std::string name() const override { return "pace"; }
  void on(const TaskEvent& event, const View& view) override;
  StepPlan plan(const View& view) override;
  void commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) override;
  std::string inspect() const override;

 protected:
  std::unordered_map<TaskId, int32_t> told_;  // output tokens of live tasks, where they are told

 private:
  // Times the value: worth leaving room, or delaying others, for.
  static constexpr double kMuchMore = 1.5;
  // Times the value: others neither hold it up nor keep their due times at its cost.
  static constexpr double kFarMore = 4;
  // The share of time that a class's admitted work may fill rises with each admitted task that
  // makes it and falls with each that misses, be it of this class or of one worth much more, then
  // by that worth: within a class it rests where one in six misses.
  static constexpr double kFirstShare = 0.9;

  // A class, apart by its cap on the output.
  struct Kind {
    explicit Kind(int32_t max_tokens) : lengths(max_tokens) {}
    LengthBelief lengths;
    double first_arrival = 0, arrivals = 0;  // since first_arrival; old ones fade
    double prompt_seconds = 0;               // mean over arrivals
    double value = 0;                        // of a new task, likewise
    Slo slo;                                 // of the last arrival
    double share = kFirstShare;              // of the time that work up to this kind's may fill
  };
  // hopeless: could not have made it even alone from its arrival on.
  enum class Place { none, waiting, started, lost, given_up, hopeless };
  struct Job {
    Kind* kind = nullptr;
    TaskLength lengths;
    Place place = Place::none;
    Ranked entry;               // in waiting_: rank = -value; in given_up_: in turn
    double prompt = 0;          // seconds of prefill that it needs before it decodes
    Ranked start_by;            // in latest_: rank = latest start of its prefill
    uint64_t admitted = 0;      // stamp of the last plan that admitted it
    bool was_admitted = false;  // by a plan that was committed
    double overrun = 0;         // overrun_ when it arrived, or had its first token in time
    int32_t produced = 0;       // tokens at the last commit that gave it one
  };

  // An admitted task: a row, due at its next token; or a prompt, due at the latest start of its
  // prefill.
  struct Row {
    double due;
    TaskId id;
    int32_t slot;
    double value;  // of its class
    // Of a row: expected utility lost a second that the token comes late, by an end before it has
    // caught up; infinity if it has only a deadline.
    double late = 0;
    bool operator<(const Row& o) const { return due != o.due ? due < o.due : id < o.id; }
  };

  static bool first_is_late(const TaskView& task);
  static bool made_it(const TaskView& task);
  Kind& kind_of(const TaskView& task);
  double prefill_seconds(const TaskView& task, const View& view) const;
  double first_due(const TaskView& task, const Job& job) const;
  double token_due(const TaskView& task, const Job& job) const;
  bool is_hopeless(const TaskView& task, const View& view) const;
  bool is_lost(const TaskView& task, const Job& job, double now) const;
  double value(const TaskView& task, const Job& job) const;
  DemandGrid::Task demand(const TaskView& task, const Job& job, const DemandGrid& grid,
                          const View& view) const;
  DemandGrid::Task reserve(double value, const DemandGrid& grid, double now) const;
  void admit(const View& view);
  std::vector<Relegation> find_lost(const View& view) const;
  MissCause cause_of(const TaskView& task, const Job& job, double now) const;
  void relegate(int32_t slot);
  void judge(Kind& kind, bool made_it);

  void choose_step(StepBuilder& step);
  int32_t most_rows() const;
  int32_t choose_batch(const StepBuilder& step);
  int32_t run_ahead(int32_t batch) const;
  bool leave_out_least();
  int32_t prompt_tokens(const Row& prompt, int32_t batch, const StepBuilder& step) const;
  void decode(int32_t first, int32_t last, StepBuilder& step) const;
  void run_leftovers(StepBuilder& step) const;
  bool run_one(int32_t slot, StepBuilder& step) const;
  int32_t piece(int32_t slot, const StepBuilder& step) const;
  bool keeps_due(double first, int32_t batch) const { return late_cost(first, batch) == 0; }
  double late_cost(double first, int32_t batch, double value = 0) const;
  bool make_room(int32_t slot, int32_t tokens, StepBuilder& step) const;

  const bool learns_;
  const double share_;
  double token_seconds_ = 0;                           // running mean of decode time a token
  double usual_rows_ = 0;                              // running mean of decode rows a step
  std::map<std::pair<int32_t, int32_t>, Kind> kinds_;  // by class and cap
  std::vector<Job> jobs_;                              // by slot
  std::set<Ranked> waiting_;
  std::set<Ranked> latest_;       // waiting tasks by start_by
  std::vector<int32_t> started_;  // hold KV or have begun, and can still make it
  std::vector<int32_t> lost_;     // by the time they were given up
  std::set<Ranked> given_up_;     // likewise: those of them that have not begun
  int64_t given_ups_ = 0;
  std::vector<int32_t> arrived_hopeless_, hopeless_;  // not yet relegated; relegated
  std::vector<int32_t> never_run_;
  double step_seconds_ = 0;  // running mean of steps
  StepCurve curve_;          // at the mean context of what has started, renewed now and then
  double overrun_ = 0;       // seconds that steps took beyond what was predicted, all in all
  uint64_t commits_ = 0;

  // Scratch of a plan.
  uint64_t plans_ = 0;  // stamps the jobs that the last plan admitted
  double now_ = 0;
  double predicted_ = 0;  // seconds of the planned step
  // Admitted, by due time: ready to decode; to be prefilled, those worth far less than one last.
  std::vector<Row> rows_, prompts_;
  std::vector<Row> aside_;  // of rows_: those that give way to others in this step
  double least_kept_ = 0;   // value that every other row has
};

// Pace that believes what it is told of each task's length; of a task that it was told nothing of,
// what pace does.
class PaceTold final : public Pace, public LengthListener {
 public:
  using Pace::Pace;
  std::string name() const override { return "pace-told"; }
  LengthListener* length_listener() override { return this; }
  void tell(TaskId id, int32_t output_tokens) override { told_[id] = output_tokens; }
};

}  // namespace slicellm
