/* Is what an audit log tells of one user a behaviour of reset.pml?  (-DFOLLOW)
   $FOLLOW names a file that chaos/conform/follow.py wrote: first the breaker at the start (mode, generation) and the head's author, then for each attempt
   (owner's key, base, generation, mode, and 1 where it was refused as suspect or 2 where the log has no row of it), then one line a row, in the log's order:
   kind, attempt, outcome (of an operator's word: the mode before it), author of its base, version after it, breaker's mode and generation after it, whether a row of the
   breaker's move names it as its cause.  -1 stands for what the log does not tell.

   A fence gives back the probe of the fenced owner, and no row tells whose that was: SPIN tries nobody, and whoever may have held
   it, which is an attempt whose mark becomes its row later, or one that has none yet, since its owner is stopped and not dead.

   Each attempt is a process of its own with one attempt.  Steps without a row are silent, and SPIN searches over them.
   `f_may` leaves out silent steps that can make no difference: a step that changes nothing which others read is taken
   as soon as what the log tells of it is so, and one that only leads up to a row when that row is next. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define F_ENDS 0            /* the outcome of an attempt */
#define F_MARKED 1          /* the same, from its mark */
#define F_FORCED 2          /* an operator's word on the breaker */
#define F_LOOK 3            /* the breaker's move: what it is by now */
#define F_FENCED 4          /* the owner of this attempt was fenced */
#define F_FENCE 5           /* an owner was fenced: whoever holds the probe may have been of it */
static struct { int kind, who, out, author, head, mode, gen, moves; } f_row[4096];
static struct { int key, base, gen, mode, told, out, marked; } f_at[256];
#define SUSPECT 1
#define ROWLESS 2
static int follow_rows, f_attempts, f_max, f_before;
static void f_report(void) { if (f_max < follow_rows) printf("REJECTED %d\n", f_max); }

static void f_went_on(void) {              /* rows that no step stands for */
  for (; now.ti < follow_rows; now.ti++) {
    if (f_row[now.ti].kind == F_FENCED) {
      now.key[f_row[now.ti].who] = 0; now.fenced[f_row[now.ti].who] = 1;
      if (now.b.probe == f_row[now.ti].who + 1) { now.b.probe = 0; now.b.gen++; }  /* as FENCE does: NA is 1 here */
    }
    else if (f_row[now.ti].kind != F_LOOK) break;
    else if (now.b.mode != f_row[now.ti].mode || now.b.gen != f_row[now.ti].gen) { now.strayed = 1; break; }
    if (now.ti + 1 > f_max) f_max = now.ti + 1;
  }
}
static void follow_load(void) {
  FILE *f = fopen(getenv("FOLLOW"), "r"); int mode, gen, author, k;
  if (!f || fscanf(f, "%d %d %d %d", &mode, &gen, &author, &f_attempts) != 4) { printf("no log to follow\n"); exit(2); }
  now.b.mode = mode; now.b.gen = gen; now.author[0] = author;
  for (k = 0; k < f_attempts; k++)
    if (fscanf(f, "%d %d %d %d %d", &f_at[k].key, &f_at[k].base, &f_at[k].gen, &f_at[k].mode, &f_at[k].told) != 5) exit(2);
    else {
      suspect[k] = f_at[k].told == SUSPECT;
      if (f_at[k].told == ROWLESS) f_at[k].out = O_INTERRUPTED, f_at[k].marked = 1;     /* what its mark will say */
    }
#define R f_row[follow_rows]
  while (fscanf(f, "%d %d %d %d %d %d %d %d", &R.kind, &R.who, &R.out, &R.author, &R.head, &R.mode, &R.gen, &R.moves) == 8) {
    if (R.kind <= F_MARKED && !f_at[R.who].out) f_at[R.who].out = R.out, f_at[R.who].marked = R.kind == F_MARKED;
    follow_rows++;
  }
  fclose(f);
  atexit(f_report);
}
static void follow_keys(void) {            /* once every process has its key */
  int k;
  for (k = 0; k < f_attempts; k++) if (!f_at[k].key) now.key[k] = 0, now.fenced[k] = 1;
  f_went_on();
}
static void follow_accept(void) { f_max = follow_rows; printf("ACCEPTED %d %d %d\n", now.b.mode, now.b.gen, now.author[now.head]); exit(0); }

static State f_was;                        /* before the step */
static int f_total(void) { int k, n = 0; for (k = 0; k < f_attempts; k++) n += now.rows[k]; return n; }
static void follow_pre(void) {
  memcpy(&f_was, &now, sizeof(now));
  f_before = f_total();
  limit = now.ti < follow_rows && f_row[now.ti].moves ? 1 : 1000;
}

#define ADMITS(m) ((m) == CLOSED || (m) == FORCED_CLOSED)
#define MAY_LEASE ((f_was.b.mode == OPEN && f_was.b.cooled) || (f_was.b.mode == HALF && f_was.b.probe == 0))
static int f_holds(int k, int gen) {       /* the log says that this attempt held the lease of that generation */
  return f_at[k].gen == gen && (f_at[k].mode == HALF || (f_at[k].marked && f_at[k].out != O_REFUSED));
}
static int f_wants_probe(int k) {          /* ... or a mark does not say, and somebody must have held it */
  int gen = f_was.b.gen + 1, j, later = 0;
  if (ADMITS(f_was.b.mode)) return 0;
  for (j = 0; j < follow_rows; j++) if (f_row[j].gen == gen) return 0;      /* another move led to that generation */
  for (j = 0; j < f_attempts; j++) if (f_at[j].gen == gen && f_at[j].mode >= 0 && f_at[j].mode != HALF) return 0;
  if (f_holds(k, gen)) return 1;
  if (!f_at[k].marked || f_at[k].out == O_REFUSED || f_at[k].gen > gen) return 0;
  for (j = 0; j < f_attempts; j++) { if (f_holds(j, gen)) return 0; later |= f_at[j].gen > gen; }
  for (j = f_was.ti; j < follow_rows; j++) later |= f_row[j].gen > gen;
  return later;
}
static int f_asks(int k) {                 /* its question to the breaker can have no other answer than the log's */
  if (f_was.phase[k] != ASKING || f_at[k].gen != f_was.b.gen) return 0;
  if (f_at[k].out == O_REFUSED) return !ADMITS(f_was.b.mode) || f_at[k].told == SUSPECT;
  return ADMITS(f_was.b.mode) && (f_at[k].mode < 0 || f_at[k].mode == f_was.b.mode);
}
static int f_measured(void) {              /* the head has to grow, and no attempt that the log tells of made it grow */
  int k, wanted = 0;
  for (k = f_was.ti; k < follow_rows; k++)
    if (f_row[k].kind == F_ENDS && f_row[k].out == O_COMMITTED) { if (f_row[k].head == f_was.head + 1) return 0; else break; }
  for (k = 0; k < f_attempts; k++) wanted |= f_was.used[k] == 0 && f_at[k].base > f_was.head;
  return wanted;
}
static int f_of_the_fenced(int k) {        /* it may have been of the owner that was fenced: nothing whole of it comes after */
  int j;
  if (f_at[k].told == ROWLESS) return 1;
  for (j = f_was.ti; j < follow_rows; j++) if (f_row[j].kind <= F_MARKED && f_row[j].who == k) return f_row[j].kind == F_MARKED;
  return 0;
}
static int f_eager(int *who) {             /* the silent step to take before any other, if there is one */
  int k;
  for (k = 0; k < f_attempts; k++) {
    *who = k;
    if (f_was.phase[k] == IDLE && f_was.used[k] == 0 && (f_at[k].base < 0 || f_at[k].base == f_was.head)) return 'b';
    if (f_asks(k)) return 'a';
    if (f_was.phase[k] == REFUSED) return 'f';
  }
  *who = 0;
  return f_measured() ? 'm' : 0;
}
static int f_may(const char *step, int r) {
  int who, eager = f_eager(&who), next = f_was.ti < follow_rows ? f_row[f_was.ti].who : -1, kind, k;
  if (f_was.ti >= follow_rows) return 0;
  kind = f_row[f_was.ti].kind;
#define IS(s) (strcmp(step, s) == 0)
  if (eager) return r == who && ((eager == 'b' && IS("begin")) || (eager == 'a' && IS("ask")) || (eager == 'f' && IS("finish"))
                                 || (eager == 'm' && IS("measure")));
  if (IS("force open")) return kind == F_FORCED && f_row[f_was.ti].mode == FORCED_OPEN;
  if (IS("force closed")) return kind == F_FORCED && f_row[f_was.ti].mode == FORCED_CLOSED;
  if (IS("release")) return kind == F_FORCED && f_row[f_was.ti].mode == CLOSED;
  if (IS("cool")) { for (k = 0; k < f_attempts; k++) if (f_was.phase[k] == ASKING && f_wants_probe(k)) return 1; return 0; }
  if (IS("fence another")) return kind == F_FENCE;
  if (r >= f_attempts) return 0;
  if (IS("fence")) return kind == F_FENCE && f_was.b.probe == r + 1 && f_of_the_fenced(r);
  if (IS("ask")) return f_wants_probe(r) && MAY_LEASE;
  if (IS("lease")) return f_at[r].out == O_REFUSED ? f_was.gen[r] != f_was.b.gen
                                                   : f_was.gen[r] == f_was.b.gen && f_wants_probe(r);
  if (kind > F_MARKED || r != next) return 0;
  if (f_row[f_was.ti].kind == F_MARKED && f_row[f_was.ti].out != O_REFUSED) {
    /* a mark that tells the generation was filled after the breaker had said yes */
    if (IS("crash")) return f_at[r].gen <= 0 || f_row[f_was.ti].out != O_INTERRUPTED || f_was.phase[r] != ASKING;
    return IS("reopen") || IS("settle");
  }
  if (f_row[f_was.ti].out == O_REFUSED) return IS("flush");
  if (f_row[f_was.ti].out == O_COMMITTED) return IS("mutate") || IS("validate") || IS("offer") || IS("commit");
  return (IS("fail") && f_row[f_was.ti].out == O_ROLLEDBACK) || (IS("leave") && !f_row[f_was.ti].moves);
}

static void follow_post(const char *step, int r) {
  int now_total = f_total(), forced = strncmp(step, "force", 5) == 0 || strcmp(step, "release") == 0, who, out;
  int fence = strncmp(step, "fence", 5) == 0;
  if (!f_may(step, r)) { memcpy(&now, &f_was, sizeof(now)); now.strayed = 1; return; }
  if (now_total == f_before && !forced && !fence) return;          /* a silent step */
  if (now.ti >= follow_rows) { now.strayed = 1; return; }
  who = f_row[now.ti].who; out = f_row[now.ti].out;
  if (fence) {                                           /* its row tells nothing of this user */
  } else if (forced) {                                   /* an operator's word */
    if (now.b.gen != f_row[now.ti].gen || f_was.b.mode != f_row[now.ti].out) { now.strayed = 1; return; }
  } else {
    if (now_total != f_before + 1 || now.rows[who] != 1) { now.strayed = 1; return; }
    if (f_row[now.ti].kind == F_MARKED && out != O_REFUSED) out = O_INTERRUPTED;   /* the mark's word is as good as another */
    if (out == O_CONFLICTED) out = O_ROLLEDBACK;         /* the log tells conflicts over more than the head */
    if (now.out[who] != out) { now.strayed = 1; return; }
    if (f_row[now.ti].head >= 0 && now.head != f_row[now.ti].head) { now.strayed = 1; return; }
    if (f_row[now.ti].author >= 0 && now.author[f_at[who].base] != f_row[now.ti].author) { now.strayed = 1; return; }
  }
  now.ti++;
  if (now.ti > f_max) f_max = now.ti;
  f_went_on();
}
