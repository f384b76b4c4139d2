/* Prints each explored transition of a model (-DEMIT) as a line: state before, action, who, state after.
   A state is all of the model's variables, as its FIELDS names them; the first line has their names, and how many each has. */
#include <stdio.h>
#if defined(OF_reset)
#define FIELDS ONE(head) ONE(cx) ONE(cP) ONE(bad_head) MANY(author) MANY(out) MANY(rows) MANY(key) \
  ONE(b.mode) ONE(b.fails) ONE(b.wins) ONE(b.gen) ONE(b.probe) ONE(b.cooled) ONE(died) MANY(mark) MANY(mbase) MANY(orphan) \
  MANY(phase) MANY(used) MANY(base) MANY(gen) MANY(wx) MANY(wP) MANY(bad) MANY(susp) MANY(begun) MANY(lost) MANY(acked) \
  MANY(abase) ONE(meas_at) MANY(fenced) ONE(crashes) ONE(cuts) ONE(fences) ONE(forces) ONE(faults) ONE(meas) ONE(invalid)
#elif defined(OF_containment)
#define FIELDS EACH(b, .mode) EACH(b, .fails) EACH(b, .wins) EACH(b, .gen) EACH(b, .probe) EACH(b, .cooled) \
  ONE(g.mode) ONE(g.fails) ONE(g.wins) ONE(g.gen) ONE(g.probe) ONE(g.cooled) MANY(failing) MANY(phase) MANY(used) MANY(gen) \
  MANY(ggen) MANY(wants) MANY(orphan) MANY(failed) MANY(ever) ONE(crashes) ONE(forces)
#elif defined(OF_history)
#define FIELDS MANY(kind) ONE(newest) ONE(first) MANY(torn) ONE(head_torn) ONE(probation) ONE(passed) ONE(pin) ONE(pin_state) \
  ONE(pin_upto) MANY(took) MANY(upto) \
  MANY(left) ONE(moved_aside) MANY(state) ONE(breaks) MANY(plan) MANY(target) MANY(read_newest) MANY(read_aside) MANY(read_torn) \
  ONE(given) ONE(torn_heads) ONE(before) ONE(flips) ONE(rules) ONE(crashes)
#endif
static FILE *emit_to;
static char emit_before[2048];
static void emit_state(char *into) {
  int k, p = 0;
#define ONE(x)  p += sprintf(into + p, "%d,", (int)now.x);
#define EACH(x, of) for (k = 0; k < (int)(sizeof(now.x) / sizeof(now.x[0])); k++) p += sprintf(into + p, "%d,", (int)now.x[k] of);
#define MANY(x) EACH(x, )
  FIELDS
#undef ONE
#undef MANY
#undef EACH
  into[p - 1] = 0;
}
static void emit_pre(void) {
  if (!emit_to) {
    emit_to = fopen("edges", "w");
#define ONE(x)  fprintf(emit_to, "%s 1\t", #x);
#define EACH(x, of) fprintf(emit_to, "%s%s %d\t", #x, #of, (int)(sizeof(now.x) / sizeof(now.x[0])));
#define MANY(x) EACH(x, )
    FIELDS
    fprintf(emit_to, "\n");
#undef ONE
#undef MANY
#undef EACH
  }
  emit_state(emit_before);
}
static void emit_post(const char *action, int who) {
  char after[2048];
  emit_state(after);
  fprintf(emit_to, "%s\t%s\t%d\t%s\n", emit_before, action, who, after);
}
